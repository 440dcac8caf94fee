"""How an adapter asks: once for all calls, because trainers' forms have no place for it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.errors import ConfigError, DinaError, NoAnswerError, WorkError
from dina_lrm.noise import Adaptive, Fusion, NoiseEnsemble
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
        seed: of the noise, the same at every call: samples of one size meet the same noise. None draws one for each sample.
        value: "reward", which is calibrated, or "utility", which the network gave.
    """

    sigmas: tuple[float, ...] = (0.4,)
    draws: int | Adaptive = 1
    fusion: Fusion = "mean"
    antithetic: bool = False
    seed: int | None = 0
    value: Literal["reward", "utility"] = "reward"

    def __post_init__(self) -> None:
        if self.value not in VALUES:
            raise ConfigError(f"value must be one of {', '.join(VALUES)}, got {self.value!r}")
        NoiseEnsemble(self.sigmas, self.draws, self.fusion, self.antithetic)  # refuses before a model is loaded

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
            seed=self.seed if self.seed is not None else fresh_seeds(latents if latents is not None else images),
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

        All are asked for at once. If that is refused, or a number is not finite, each is asked for by itself, so that one bad
        picture costs the others nothing. A server that gives no answer is not asked again.

        Args:
            model: local or behind HTTP.
            prompts: one a picture.
            images: the pictures.

        Raises:
            NoAnswerError: the server gave none when all were asked for.
            DinaError: none could be scored.
        """
        if not images:
            return []
        try:
            values: list[float] = self.values(self.score(model, prompts=list(prompts), images=list(images))).tolist()
            return list(values)
        except NoAnswerError:
            raise
        except DinaError as error:
            if len(images) == 1:
                raise
            first = error
        found: list[float | DinaError] = []
        for prompt, image in zip(prompts, images, strict=True):
            gone = found[-1] if found and isinstance(found[-1], NoAnswerError) else None
            found.append(gone if gone is not None else self._of_one(model, prompt, image))
        if all(isinstance(one, DinaError) for one in found):
            raise first
        return found

    def _of_one(self, model: RewardFunction, prompt: str, image: Image.Image) -> float | DinaError:
        try:
            return float(self.values(self.score(model, prompts=[prompt], images=[image]))[0])
        except DinaError as error:
            return error


def fresh_seeds(samples: Sequence[object] | Tensor | None) -> tuple[int, ...]:
    """A seed that nobody chose for each sample, as the server draws them."""
    return tuple(secrets.randbelow(2**53) for _ in range(0 if samples is None else len(samples)))


DEFAULT = Asking()
