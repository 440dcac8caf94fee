"""ReFL (Xu et al. 2023, arXiv 2304.05977) in latent space: the reward's gradient through one late step.

A rollout without gradient down to a level drawn from the last ones; there, one prediction of the clean latents with gradient,
scored, and its reward climbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, PromptBatch, Step, mean_over, pulled, squared_error
from dina_lrm.errors import ConfigError, ValueRangeError
from dina_lrm.generation import clean, rollout
from dina_lrm.noise.process import RectifiedFlow

__all__ = ["Refl"]


@dataclass
class Refl(Algorithm):
    """`loss = (L + w L_pre) / (1 + w)` with `L = -mean reward(x_0(s)) + kl ||v - v_ref||^2` at one level s of the last ones.

    `L_pre = ||v(x_t) - (noise - x)||^2` on as many real latents x at uniform levels t.

    Attributes:
        late: the share of the grid's steps, at its end, among which the level is drawn.
        kl: weight of staying near the reference.
        pretraining: w.
    """

    needs_gradient: ClassVar[bool] = True

    late: float = 0.25
    kl: float = 0.0
    pretraining: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.late <= 1:
            raise ValueRangeError(f"late must be in (0, 1], got {self.late:g}")

    def strengthen(self, factor: float) -> None:
        self.kl = pulled("kl", self.kl, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        steps = len(actors.sigmas) - 1
        first = steps - max(1, round(self.late * steps))
        place = actors.agreed(int(torch.randint(first, steps, (), generator=generator)))
        with torch.no_grad():
            way = rollout(actors.guided, batch.noise, batch.conditioning, actors.sigmas, stop=place)
        state = way.state(place)
        velocity = actors.policy(state, batch.conditioning)
        judged = actors.reward(clean(state, velocity), batch)
        loss = -mean_over(judged.reward, judged.valid)
        if self.kl:
            loss = loss + self.kl * mean_over(
                squared_error(velocity, actors.velocity_of_reference(state, batch.conditioning)), judged.valid
            )
        figures = {"reward": mean_over(judged.reward, judged.valid).detach(), "sigma": state.sigma[0]}
        if self.pretraining:
            real = self._pretraining_loss(actors, len(batch), generator)
            loss = (loss + self.pretraining * real) / (1 + self.pretraining)
            figures["pretraining"] = real.detach()
        yield Step(loss, figures=figures)

    @staticmethod
    def _pretraining_loss(actors: Actors, count: int, generator: torch.Generator) -> Tensor:
        if actors.real is None:
            raise ConfigError(
                "a pretraining loss needs real latents to learn from: give `real`, or set pretraining to 0"
            )
        latents, conditioning = actors.real(count, generator)
        sigma = torch.rand(count, generator=generator).clamp(0.01, 0.99).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        state = RectifiedFlow().add_noise(latents, noise, sigma)
        return squared_error(actors.policy(state, conditioning), noise - latents).mean()
