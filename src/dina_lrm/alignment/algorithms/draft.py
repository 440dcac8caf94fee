"""DRaFT-K and DRaFT-LV (Clark et al. 2023, arXiv 2309.17400): the reward's gradient through the last K steps.

The steps before are taken without gradient. Those with one keep no activations: each is computed again when the gradient
comes back; of a base that processes hold together it is the blocks that do so, with `gradient_checkpointing`. LV lowers the
variance of K = 1: several fresh noisings of the finished sample down to the last level are each finished with gradient, and
their gradients averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, PromptBatch, Step, mean_over, pulled, squared_error
from dina_lrm.errors import ConfigError, ValueRangeError
from dina_lrm.generation import ode_step, rollout, state_at

__all__ = ["Draft"]


@dataclass
class Draft(Algorithm):
    """`loss = -mean reward(x_0)`, the gradient reaching back over the last `last_steps` steps.

    Attributes:
        last_steps: K.
        noisings: of LV; 0 is plain DRaFT-K.
        kl: weight of staying near the reference at the first of these steps.
    """

    needs_gradient: ClassVar[bool] = True

    last_steps: int = 1
    noisings: int = 0
    kl: float = 0.0

    def __post_init__(self) -> None:
        if self.last_steps < 1:
            raise ValueRangeError(f"last_steps must be 1 or more, got {self.last_steps}")
        if self.noisings and self.last_steps != 1:
            raise ConfigError(f"DRaFT-LV noises for one last step, got last_steps={self.last_steps}")

    def strengthen(self, factor: float) -> None:
        self.kl = pulled("kl", self.kl, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        grid = actors.sigmas
        first = max(0, len(grid) - 1 - self.last_steps)
        with torch.no_grad():
            way = rollout(actors.guided, batch.noise, batch.conditioning, grid, stop=None if self.noisings else first)
        starts = [way.states[first]] if not self.noisings else self._noised(way.latents, float(grid[first]), generator)
        for number, start in enumerate(starts, 1):
            latents = self._finished(actors, batch, start, first)
            judged = actors.reward(latents, batch)
            loss = -mean_over(judged.reward, judged.valid)
            if self.kl:
                state = state_at(start, float(grid[first]))
                near = squared_error(
                    actors.policy(state, batch.conditioning), actors.velocity_of_reference(state, batch.conditioning)
                )
                loss = loss + self.kl * mean_over(near, judged.valid)
            figures = {"reward": mean_over(judged.reward, judged.valid).detach()}
            yield Step(loss / len(starts), ends=number == len(starts), figures=figures)

    @staticmethod
    def _finished(actors: Actors, batch: PromptBatch, latents: Tensor, first: int) -> Tensor:
        grid = actors.sigmas.tolist()

        def step(latents: Tensor, sigma: float, following: float) -> Tensor:
            state = state_at(latents, sigma)
            return ode_step(state, actors.guided(state, batch.conditioning), following).noised_latents

        for sigma, following in zip(grid[first:], grid[first + 1 :], strict=False):
            if actors.steps_again:
                latents = checkpoint(step, latents, sigma, following, use_reentrant=False)
            else:
                latents = step(latents, sigma, following)
        return latents

    def _noised(self, latents: Tensor, sigma: float, generator: torch.Generator) -> list[Tensor]:
        fresh = torch.randn(self.noisings, *latents.shape, generator=generator).to(latents)
        return list((1 - sigma) * latents + sigma * fresh)
