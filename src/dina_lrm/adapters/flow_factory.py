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

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.pictures import as_pictures
from dina_lrm.errors import ConfigError, ShapeError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.client import RewardClient
from dina_lrm.scoring.protocol import RewardFunction


class _Alone:
    """What the trainer's base class gives: accelerator, config, device, dtype, and a network to move."""

    def __init__(self, config: Any, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        named = torch.device(getattr(config, "device", None) or "cuda")
        self.device = accelerator.device if named == torch.device("cuda") else named
        self.dtype = getattr(config, "dtype", None) or torch.float32
        self.model: Any = None


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
    `server_model`, `api_key`, `timeout`, `sigmas`, `draws`, `seed` and `value`, as `RewardClient` and `Asking` take them.

    Args:
        config: the trainer's, of this reward.
        accelerator: the trainer's.
        model: asked instead of what the configuration names.
    """

    required_fields: tuple[str, ...] = ("prompt", "image")
    use_tensor_inputs: bool = False

    def __init__(self, config: Any, accelerator: Any, model: RewardFunction | None = None) -> None:
        super().__init__(config, accelerator)
        self.asking = Asking(
            sigmas=tuple(float(sigma) for sigma in getattr(config, "sigmas", None) or (0.4,)),
            draws=getattr(config, "draws", None) or 1,
            seed=getattr(config, "seed", None) or 0,
            value=getattr(config, "value", None) or "reward",
        )
        self.function: RewardFunction = model if model is not None else self._named(config)

    def _named(self, config: Any) -> RewardFunction:
        url, path = getattr(config, "server_url", None), getattr(config, "model_path", None)
        if url:
            return RewardClient(
                url,
                model=getattr(config, "server_model", None),
                api_key=getattr(config, "api_key", None),
                timeout=float(getattr(config, "timeout", None) or 120.0),
            )
        if not path:
            raise ConfigError("a reward of DinaReward must name a server_url or a model_path in its configuration")
        loaded = RewardModel.from_pretrained(
            path, base=getattr(config, "base_path", None), device=self.device, dtype=self.dtype
        )
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
