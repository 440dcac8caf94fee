"""How an adapter asks: once for all calls, because trainers' forms have no place for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.errors import ConfigError, DinaError, WorkError
from dina_lrm.noise import Adaptive, Fusion
from dina_lrm.scoring.protocol import Images, RewardFunction
from dina_lrm.types import Conditioning, Reward

VALUES = ("reward", "utility")


@dataclass(frozen=True)
class Asking:
    """Which noise a score looks at, and which of its numbers the trainer is given.

    Attributes:
        sigmas: noise levels, each in [0, 1].
        draws: noise tensors a level, or `Adaptive` with a standard error to reach.
        fusion: "mean", "weighted" or "tokens".
        antithetic: draws come in pairs of a noise and its negative.
        seed: of the noise, the same at every call: samples of one size meet the same noise.
        value: "reward", which is calibrated, or "utility", which the network gave.
    """

    sigmas: tuple[float, ...] = (0.4,)
    draws: int | Adaptive = 1
    fusion: Fusion = "mean"
    antithetic: bool = False
    seed: int = 0
    value: Literal["reward", "utility"] = "reward"

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise ConfigError(f"value must be one of {', '.join(VALUES)}, got {self.value!r}")

    def score(
        self,
        model: RewardFunction,
        *,
        prompts: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
    ) -> Reward:
        """Ask a reward function for all samples at once.

        Args:
            model: local or behind HTTP.
            prompts: one, or one a sample; or give `conditioning`.
            conditioning: encoded prompts.
            images: pictures; or give `latents`.
            latents: clean latents `[b c h w]`.
        """
        return model.score(
            prompts=prompts,
            conditioning=conditioning,
            images=images,
            latents=latents,
            sigmas=self.sigmas,
            draws=self.draws,
            fusion=self.fusion,
            antithetic=self.antithetic,
            seed=self.seed,
        )

    def values(self, reward: Reward) -> Tensor:
        """The numbers for the trainer `[b]`.

        Raises:
            WorkError: one of them is not finite.
        """
        values = reward.reward if self.value == "reward" else reward.utility
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).nonzero()[0])
            raise WorkError(f"sample {bad} was given the {self.value} {float(values[bad])}, which is not finite")
        return values

    def of_each(
        self, model: RewardFunction, prompts: Sequence[str], images: Sequence[Image.Image]
    ) -> list[float | DinaError]:
        """The number of each picture, or why it has none.

        All are asked for at once. If that fails each is asked for by itself, so that one bad picture costs the others nothing.

        Args:
            model: local or behind HTTP.
            prompts: one a picture.
            images: the pictures.

        Raises:
            DinaError: none could be scored.
        """
        if not images:
            return []
        try:
            values: list[float] = self.values(self.score(model, prompts=list(prompts), images=list(images))).tolist()
            return list(values)
        except DinaError as error:
            if len(images) == 1:
                raise
            first = error
        found = [self._of_one(model, prompt, image) for prompt, image in zip(prompts, images, strict=True)]
        if all(isinstance(one, DinaError) for one in found):
            raise first
        return found

    def _of_one(self, model: RewardFunction, prompt: str, image: Image.Image) -> float | DinaError:
        try:
            return float(self.values(self.score(model, prompts=[prompt], images=[image]))[0])
        except DinaError as error:
            return error


DEFAULT = Asking()
