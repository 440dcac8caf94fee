"""TRL: a reward function of GRPO, and one of DDPO.

GRPOTrainer(..., reward_funcs=[grpo_reward(model)])
DDPOTrainer(config, ddpo_reward(model), prompt_function, pipeline)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from PIL import Image
from torch import Tensor

from dina_lrm.adapters.asking import DEFAULT, Asking
from dina_lrm.adapters.pictures import as_pictures
from dina_lrm.errors import ConfigError, DinaError, ShapeError
from dina_lrm.images import open_image
from dina_lrm.scoring.protocol import RewardFunction

RewardFunc: TypeAlias = Callable[..., list[float | None]]


def grpo_reward(
    model: RewardFunction, asking: Asking = DEFAULT, *, images: str = "completions", name: str = "dina_reward"
) -> RewardFunc:
    """A function called with `prompts=`, `completions=` and the data set's columns, to `list[float | None]`.

    A picture is a PIL picture, the path of one, or a message whose content holds one; a prompt is a string, or messages
    whose last one of the user is read. None, which TRL leaves out of the sum, is the reward of what holds no picture, and of
    a picture that could not be scored, of which a warning tells. If none of the pictures can be scored it raises.

    Args:
        model: local or behind HTTP.
        asking: which noise is looked at, and which number is given.
        images: where the pictures are: "completions", or the name of a column.
        name: under which TRL logs the reward.
    """

    def reward_func(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        held = completions if images == "completions" else columns.get(images)
        if held is None:
            raise ConfigError(f"there is no column {images!r} with pictures; there are {', '.join(sorted(columns))}")
        if len(held) != len(prompts):
            raise ShapeError(f"{len(prompts)} prompts need as many pictures in {images}, got {len(held)}")
        read = [_picture(one, images != "completions") for one in held]
        places = [place for place, one in enumerate(read) if isinstance(one, Image.Image)]
        failed = {place: one for place, one in enumerate(read) if isinstance(one, DinaError)}
        if failed and not places:
            raise next(iter(failed.values()))
        texts, pictures = (
            [_text(prompts[place]) for place in places],
            [held for held in read if isinstance(held, Image.Image)],
        )
        found: list[float | None] = [None] * len(prompts)
        for place, value in zip(places, asking.of_each(model, texts, pictures), strict=True):
            if isinstance(value, DinaError):
                failed[place] = value
            else:
                found[place] = value
        for place, error in failed.items():
            warnings.warn(f"sample {place} has no reward: {error}", RuntimeWarning, stacklevel=2)
        return found

    reward_func.__name__ = name
    return reward_func


def ddpo_reward(
    model: RewardFunction, asking: Asking = DEFAULT
) -> Callable[[Tensor, Sequence[str], Sequence[Any]], tuple[Tensor, dict[str, Any]]]:
    """A function of images `[b 3 y x]` in 0..1, prompts and metadata, to the rewards `[b]` and a dictionary.

    TRL's annotation says that a tensor comes back; its trainer takes two things apart, so two come back here. There is no
    word for a missing reward: a picture that cannot be scored raises.

    Args:
        model: local or behind HTTP.
        asking: which noise is looked at, and which number is given.
    """

    def reward_function(
        images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        del metadata
        reward = asking.score(model, prompts=list(prompts), images=as_pictures(images))
        return asking.values(reward).detach(), {}

    return reward_function


def _text(prompt: Any) -> str:
    """What was asked for, in words."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(list(prompt)):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part.get("type") == "text")
    raise ConfigError(f"a prompt must be a string, or messages with one of the user, got {prompt!r:.80}")


def _picture(held: Any, paths: bool) -> Image.Image | DinaError | None:
    """The last picture in what a model or a data set gave; None where there is none.

    Args:
        held: a picture, a path, a message or a list of them.
        paths: a text is a path. What a model said is none: it would choose the file.

    Returns:
        The picture, or why it cannot be read.
    """
    if isinstance(held, Image.Image):
        return held
    if isinstance(held, str):
        return _at(held) if paths else None
    if isinstance(held, Mapping):
        # Data sets fill the keys that a message lacks with None.
        found = _picture(held.get("image"), paths)
        return _picture(held.get("content"), paths) if found is None else found
    if isinstance(held, Sequence):
        return next((one for part in reversed(held) if (one := _picture(part, paths)) is not None), None)
    return None


def _at(path: str) -> Image.Image | DinaError:
    try:
        return open_image(path)
    except DinaError as error:
        return error
