"""Flow-Factory: a pointwise reward model, named by its class in the configuration.

    rewards:
      - name: dina
        reward_model: dina_lrm.adapters.flow_factory.DinaReward
        server_url: http://127.0.0.1:8000       # or model_path (and base_path): then the model is loaded here
        batch_size: 16

Where Flow-Factory is installed the class derives from its `PointwiseRewardModel`, by which its processor knows what to call;
where it is not, the class stands by itself with the same face.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.pictures import as_pictures
from dina_lrm.errors import ConfigError, ShapeError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.client import RewardClient
from dina_lrm.scoring.protocol import RewardFunction

# Fields of the trainer's own configuration in one version or another.
TRAINERS_OWN = {"name", "reward_model", "weight", "dtype", "device", "batch_size"}
EXTRAS = ("extra_kwargs", "reward_model_kwargs")  # where its versions keep what they do not know
ASKING = {"sigmas", "draws", "fusion", "antithetic", "seed", "value"}
SERVER = {"server_url", "server_model", "api_key", "timeout"}
KNOWN = ASKING | SERVER | {"model_path", "base_path"}


class _Alone:
    """What the trainer's base class gives: accelerator, config, device, dtype, and a network to move."""

    def __init__(self, config: Any, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        named = torch.device(getattr(config, "device", None) or "cuda")
        self.device = accelerator.device if named == torch.device("cuda") else named
        self.dtype = getattr(config, "dtype", None) or torch.float32
        self.model: Any = None

    def to(self, device: Any) -> Any:
        """Move the network; what is asked over HTTP stays where it is."""
        if self.model is not None:
            self.model.to(device)
        self.device = torch.device(device)
        return self


@dataclass
class _Output:
    """What the trainer reads: `rewards` and `extra_info`."""

    rewards: Tensor
    extra_info: dict[str, Any] | None = None


if TYPE_CHECKING:
    Base: TypeAlias = _Alone
    Output: TypeAlias = _Output
else:
    try:
        _theirs = import_module("flow_factory.rewards.abc")
        Base, Output = _theirs.PointwiseRewardModel, _theirs.RewardModelOutput
    except ImportError:
        Base, Output = _Alone, _Output


class DinaReward(Base):
    """A `PointwiseRewardModel`: the reward of each picture under its prompt.

    The configuration's `server_url`, or `model_path` with an optional `base_path`, says whom to ask; also read are
    `server_model`, `api_key` and `timeout`, as `RewardClient` takes them, and all of `Asking`: `sigmas` (one or several),
    `draws` (a number, or `Adaptive`'s settings), `fusion`, `antithetic`, `seed` (null draws one for each sample) and `value`.
    What else it holds beyond the trainer's own is refused.

    Args:
        config: the trainer's, of this reward.
        accelerator: the trainer's.
        model: asked instead of what the configuration names.

    Raises:
        ConfigError: a setting that is not known, or of the wrong kind.
        ValueRangeError: levels or draws that no model can be asked for.
    """

    required_fields: tuple[str, ...] = ("prompt", "image")
    use_tensor_inputs: bool = False

    def __init__(self, config: Any, accelerator: Any, model: RewardFunction | None = None) -> None:
        super().__init__(config, accelerator)
        settings = _settings(config)
        self.asking = _asking(settings)
        self.function: RewardFunction = model if model is not None else self._named(settings)

    def _named(self, settings: Mapping[str, Any]) -> RewardFunction:
        url, path = settings.get("server_url"), settings.get("model_path")
        if url:
            return RewardClient(
                url,
                model=settings.get("server_model"),
                api_key=settings.get("api_key"),
                timeout=_number(settings.get("timeout", 120.0), "timeout"),
            )
        if not path:
            raise ConfigError("a reward of DinaReward must name a server_url or a model_path in its configuration")
        loaded = RewardModel.from_pretrained(path, base=settings.get("base_path"), device=self.device, dtype=self.dtype)
        self.model = loaded.network  # the trainer moves it between devices
        return loaded

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        image: Sequence[Any] | None = None,
        video: Any = None,
        audio: Any = None,
        condition_images: Any = None,
        condition_videos: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Score a batch; the trainer has no word for a missing reward, so a picture that cannot be scored raises.

        Args:
            prompt: one a picture.
            image: PIL pictures.
            video: not scored.
            audio: not read.
            condition_images: not read.
            condition_videos: not read.
            kwargs: of the sample; not read.

        Returns:
            `rewards` `[b]` on the CPU, and utilities with their standard errors as `extra_info`.

        Raises:
            ShapeError: no pictures, or not as many as prompts.
        """
        del video, audio, condition_images, condition_videos, kwargs
        if image is None or len(image) != len(prompt):
            told = "none" if image is None else len(image)
            raise ShapeError(f"{len(prompt)} prompts need as many images, got {told}")
        reward = self.asking.score(self.function, prompts=list(prompt), images=as_pictures(list(image)))
        return Output(
            rewards=self.asking.values(reward).detach().cpu(),
            extra_info={
                "utility": reward.utility.tolist(),
                "standard_error": reward.standard_error.tolist(),
                "sigmas": reward.sigmas.tolist(),
                "seed": reward.seed,
            },
        )


def _settings(config: Any) -> dict[str, Any]:
    """What the configuration says to this reward, wherever the trainer's version keeps it; None says nothing but for the seed.

    Raises:
        ConfigError: it says what nobody reads.
    """
    theirs = TRAINERS_OWN | ({one.name for one in fields(config)} if is_dataclass(config) else set())
    said = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    extras = [said.pop(name, None) or {} for name in EXTRAS]
    for extra in extras:
        said.update(extra)
    unknown = sorted(name for name in said if name not in KNOWN and name not in theirs)
    if unknown:
        raise ConfigError(
            f"the configuration of DinaReward has settings that are not known: {', '.join(unknown)}; there are "
            f"{', '.join(sorted(KNOWN))}"
        )
    return {name: value for name, value in said.items() if name in KNOWN and (value is not None or name == "seed")}


def _asking(settings: Mapping[str, Any]) -> Asking:
    said = {name: value for name, value in settings.items() if name in ASKING}
    if "sigmas" in said:
        levels = said["sigmas"]
        several = levels if isinstance(levels, Iterable) and not isinstance(levels, str) else (levels,)
        said["sigmas"] = tuple(_number(sigma, "sigmas") for sigma in several)
    if isinstance(said.get("draws"), Mapping):
        try:
            said["draws"] = Adaptive(**said["draws"])
        except TypeError as error:
            raise ConfigError(f"draws must be a number or the settings of Adaptive: {error}") from error
    if not isinstance(said.get("antithetic", False), bool):
        raise ConfigError(f"antithetic must be true or false, got {said['antithetic']!r}")
    seed = said.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ConfigError(f"seed must be a whole number or null, got {seed!r}")
    return Asking(**said)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, got {value!r:.40}")
    return float(value)
