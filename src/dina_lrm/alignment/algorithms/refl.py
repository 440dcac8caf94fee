"""ReFL (Xu et al. 2023, arXiv 2304.05977) in latent space: the reward's gradient through one late step.

A rollout without gradient down to a level drawn from the last ones; there, one prediction of the clean latents with gradient,
scored, and its reward climbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, PromptBatch, Step, mean_over, squared_error
from dina_lrm.errors import ValueRangeError
from dina_lrm.generation import clean, rollout

__all__ = ["Refl"]


@dataclass
class Refl(Algorithm):
    """`loss = -mean reward(x_0(s)) + kl ||v - v_ref||^2` at one level s of the last ones of the grid.

    Attributes:
        late: the share of the grid's steps, at its end, among which the level is drawn.
        kl: weight of staying near the reference.
    """

    late: float = 0.25
    kl: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.late <= 1:
            raise ValueRangeError(f"late must be in (0, 1], got {self.late:g}")

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        steps = len(actors.sigmas) - 1
        first = steps - max(1, round(self.late * steps))
        place = int(torch.randint(first, steps, (), generator=generator))
        with torch.no_grad():
            way = rollout(actors.guided, batch.noise, batch.conditioning, actors.sigmas, stop=place)
        state = way.state(place)
        velocity = actors.policy(state, batch.conditioning)
        judged = actors.reward(clean(state, velocity), batch)
        loss = -mean_over(judged.reward, judged.valid)
        if self.kl:
            loss = (
                loss + self.kl * squared_error(velocity, actors.velocity_of_reference(state, batch.conditioning)).mean()
            )
        yield Step(loss, figures={"reward": mean_over(judged.reward, judged.valid).detach(), "sigma": state.sigma[0]})
