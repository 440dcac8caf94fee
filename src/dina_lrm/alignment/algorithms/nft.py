"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): reinforcement on the forward process.

Samples come from an old policy by any solver. They are noised afresh; a positive policy, mixed of new and old velocities, is
fitted to them as much as they are good, and its mirror image, the negative policy, as much as they are bad.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms.base import (
    Actors,
    Algorithm,
    PromptBatch,
    Step,
    group_advantages,
    mean_over,
    pulled,
    squared_error,
)
from dina_lrm.generation import clean, rollout
from dina_lrm.noise.process import RectifiedFlow
from dina_lrm.runtime.ema import Ema
from dina_lrm.types import NoisedState

__all__ = ["Nft", "nft_loss", "old_decay"]


def old_decay(update: int, kind: Literal[1, 2]) -> float:
    """How much of the old policy stays after an update.

    Args:
        update: number of the update, from 0.
        kind: 1 is `min(0.001 n, 0.5)`; 2 is 0 for 75 updates, then `min(0.0075 (n - 75), 0.999)`.
    """
    return min(0.001 * update, 0.5) if kind == 1 else min(0.0075 * max(0, update - 75), 0.999)


def nft_loss(
    state: NoisedState, latents: Tensor, new: Tensor, old: Tensor, optimality: Tensor, strength: float
) -> Tensor:
    """`(r ||x_0(v+) - x_0||^2 / w+ + (1 - r) ||x_0(v-) - x_0||^2 / w-) / b`, `[b]`.

    `v+ = b v + (1 - b) v_old`, `v- = (1 + b) v_old - b v`; w is the mean absolute error, without gradient.

    Args:
        state: the noised samples.
        latents: the samples `[b c h w]`.
        new: velocity of the policy.
        old: velocity of the old policy.
        optimality: r in 0..1 `[b]`.
        strength: b.
    """

    def error(velocity: Tensor) -> Tensor:
        found = clean(state, velocity)
        weight = (found.detach() - latents).abs().flatten(1).mean(dim=1).clamp_min(1e-5)
        return squared_error(found, latents) / weight

    positive, negative = strength * new + (1 - strength) * old, (1 + strength) * old - strength * new
    return (optimality * error(positive) + (1 - optimality) * error(negative)) / strength


@dataclass
class Nft(Algorithm):
    """`loss = A_max nft_loss + kl ||v - v_ref||^2`, with `r = clip(A / A_max / 2 + 1 / 2, 0, 1)`.

    Attributes:
        group_size: samples a prompt.
        strength: b.
        kl: weight of staying near the reference.
        decay: kind of `old_decay`.
        passes: optimiser steps that a rollout is learned from.
        noisings: of each sample in such a step, at levels of their own; their gradients are averaged.
        advantage_limit: A_max.
        spread: of advantages.
    """

    group_size: int = 24
    strength: float = 1.0
    kl: float = 1e-4
    decay: Literal[1, 2] = 1
    passes: int = 1
    advantage_limit: float = 5.0
    spread: str = "batch"
    noisings: int = 1
    _old: Ema | None = field(default=None, init=False, repr=False)
    _saved: Mapping[str, Tensor] | None = field(default=None, init=False, repr=False)

    def strengthen(self, factor: float) -> None:
        self.kl = pulled("kl", self.kl, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        old = self._old_policy(actors)
        with torch.no_grad(), old.swapped():
            latents = rollout(actors.guided, batch.noise, batch.conditioning, actors.sigmas).latents
            judged = actors.reward(latents, batch)
        advantages = group_advantages(judged, self.group_size, self.spread, self.advantage_limit)
        optimality = advantages / self.advantage_limit / 2 + 0.5
        for number in range(1, self.passes * self.noisings + 1):
            sigma = torch.rand(len(batch), generator=generator).clamp(0.01, 0.99).to(latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents.device)
            state = RectifiedFlow().add_noise(latents, noise, sigma)
            with torch.no_grad(), old.swapped():
                before = actors.policy(state, batch.conditioning)
            velocity = actors.policy(state, batch.conditioning)
            fitted = self.advantage_limit * nft_loss(state, latents, velocity, before, optimality, self.strength)
            near = squared_error(velocity, actors.velocity_of_reference(state, batch.conditioning))
            figures = {"reward": mean_over(judged.reward, judged.valid), "kl": near.detach().mean()}
            loss = mean_over(fitted + self.kl * near, judged.valid) / self.noisings
            yield Step(loss, ends=number % self.noisings == 0, figures=figures)

    def finish(self, actors: Actors) -> None:
        old = self._old_policy(actors)
        old.update(old_decay(old.num_updates, self.decay))

    def _old_policy(self, actors: Actors) -> Ema:
        """The policy that samples: it begins as the new one and follows it slowly."""
        if self._old is None:
            self._old = Ema(actors.parameters)
            if self._saved is not None:
                self._old.load_state_dict(self._saved)
        return self._old

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._old is None else self._old.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._old, self._saved = None, state or None
