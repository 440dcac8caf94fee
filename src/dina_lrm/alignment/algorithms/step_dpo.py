"""Step-level preference optimisation (SPO, arXiv 2406.04314; LPO, arXiv 2502.01051), ours with a reward that reads states.

At a noisy step several next states are drawn from one state. The reward reads them as they stand, at their own sigma: nothing
is finished or decoded. The best and the worst are a pair for DPO on that one step's log-probabilities; the rollout goes on from
one of them at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, PromptBatch, Step, best_and_worst, mean_over, pulled
from dina_lrm.errors import ConfigError
from dina_lrm.generation import FlowNoise, StepNoise, ode_step, state_at
from dina_lrm.types import NoisedState

__all__ = ["StepDpo"]


@dataclass
class StepDpo(Algorithm):
    """`-log sigmoid(b ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)))` at each step of a band of levels.

    Attributes:
        candidates: next states drawn from one state.
        noise: of the steps.
        strength: b, for log-probabilities that are means over a sample's numbers.
        gap: pairs whose rewards lie no farther apart teach nothing; in the reward's units.
        band: levels (of the next state) at which pairs are taken.
    """

    reads_states: ClassVar[bool] = True

    candidates: int = 4
    noise: StepNoise = FlowNoise(0.7)
    strength: float = 500.0
    gap: float = 0.0
    band: tuple[float, float] = (0.2, 0.9)

    def strengthen(self, factor: float) -> None:
        self.strength = pulled("strength", self.strength, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        if actors.reward_of_state is None:
            raise ConfigError(
                "step-level preferences need a reward that reads noised states; give a latent reward model"
            )
        grid = actors.sigmas.tolist()
        inside = [place for place in range(len(grid) - 2) if self.band[0] <= grid[place + 1] <= self.band[1]]
        if not inside:
            raise ConfigError(f"no level of the grid lies in the band {self.band}; take more steps or a wider band")
        latents, count = batch.noise, len(batch)
        each = torch.arange(count).repeat_interleave(self.candidates)
        many = replace(batch[each], group_size=self.candidates)
        for place in range(inside[-1] + 1):
            state = state_at(latents, grid[place])
            with torch.no_grad():
                velocity = actors.guided(state, batch.conditioning)
                if place not in inside:
                    latents = ode_step(state, velocity, grid[place + 1]).noised_latents
                    continue
                towards = self.noise.transition(state, velocity, grid[place + 1], grid[1])
                fresh = torch.randn(len(many), *latents.shape[1:], generator=generator).to(latents)
                drawn = towards.mean[each] + towards.std * fresh
                judged = actors.reward_of_state(state_at(drawn, grid[place + 1]), many)
            best, worst, gap = best_and_worst(judged, self.candidates)
            teaches = gap > self.gap
            margin = self._margin(actors, state, batch, place, drawn[best], drawn[worst])
            loss = mean_over(-logsigmoid(self.strength * margin), teaches)
            figures = {
                "reward": mean_over(judged.reward, judged.valid),
                "gap": mean_over(gap, teaches),
                "pairs": teaches.sum().float(),
                "accuracy": mean_over((margin > 0).float(), teaches).detach(),
            }
            yield Step(loss / len(inside), ends=place == inside[-1], figures=figures)
            onward = torch.randint(self.candidates, (count,), generator=generator)
            latents = drawn.view(count, self.candidates, *latents.shape[1:])[torch.arange(count), onward]

    def _margin(
        self, actors: Actors, state: NoisedState, batch: PromptBatch, place: int, chosen: Tensor, rejected: Tensor
    ) -> Tensor:
        """By how much more the policy prefers the one step to the other than the reference does, `[b]`."""
        following, first = float(actors.sigmas[place + 1]), float(actors.sigmas[1])

        def preference() -> Tensor:
            towards = self.noise.transition(state, actors.guided(state, batch.conditioning), following, first)
            return self.noise.log_prob(chosen, towards) - self.noise.log_prob(rejected, towards)

        with torch.no_grad(), actors.reference():
            before = preference()
        return preference() - before
