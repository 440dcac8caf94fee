"""Online Flow-DPO on latents (Wallace et al. 2023, arXiv 2311.12908; Liu et al. 2025): the reward judges, the pair teaches.

Of each prompt's samples the best and the worst by the reward are a pair. Both are noised alike, and the policy is to gain on
the reference for the better one more than for the worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dina_lrm.alignment.algorithms.base import (
    Actors,
    Algorithm,
    PromptBatch,
    Step,
    best_and_worst,
    mean_over,
    pulled,
    squared_error,
)
from dina_lrm.generation import rollout
from dina_lrm.noise.process import RectifiedFlow

__all__ = ["FlowDpo", "dpo_loss"]


def dpo_loss(gain_chosen: Tensor, gain_rejected: Tensor, strength: float) -> Tensor:
    """`-log sigmoid(-(b / 2) (gain_chosen - gain_rejected))`, `[m]`.

    Args:
        gain_chosen: error of the policy's velocity less that of the reference's on the chosen `[m]`; negative is a gain.
        gain_rejected: the same on the rejected.
        strength: b.
    """
    return -logsigmoid(-0.5 * strength * (gain_chosen - gain_rejected))


@dataclass
class FlowDpo(Algorithm):
    """The pair's errors at one sigma and noise: `||v* - v||^2 - ||v* - v_ref||^2` with `v* = noise - latents`.

    Attributes:
        group_size: samples a prompt, of which the best and the worst are taken.
        strength: b, for errors that are means over a sample's numbers.
        gap: pairs whose rewards lie no farther apart teach nothing.
        passes: fresh noisings that a pair is learned from.
    """

    group_size: int = 8
    strength: float = 500.0
    gap: float = 0.0
    passes: int = 1

    def strengthen(self, factor: float) -> None:
        self.strength = pulled("strength", self.strength, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        with torch.no_grad():
            latents = rollout(actors.guided, batch.noise, batch.conditioning, actors.sigmas).latents
            judged = actors.reward(latents, batch)
        best, worst, gap = best_and_worst(judged, self.group_size)
        teaches = gap > self.gap
        pairs = torch.cat([best, worst])
        pictures, text = latents[pairs], batch.conditioning[pairs]
        for _ in range(self.passes):
            sigma = torch.rand(len(best), generator=generator).clamp(0.01, 0.99).to(latents.device).repeat(2)
            noise = torch.randn(latents[best].shape, generator=generator).to(latents.device).repeat(2, 1, 1, 1)
            state = RectifiedFlow().add_noise(pictures, noise, sigma)
            target = noise - pictures
            error = squared_error(actors.policy(state, text), target)
            gain = error - squared_error(actors.velocity_of_reference(state, text), target)
            chosen, rejected = gain.chunk(2)
            loss = mean_over(dpo_loss(chosen, rejected, self.strength), teaches)
            figures = {
                "reward": mean_over(judged.reward, judged.valid),
                "gap": mean_over(gap, teaches),
                "pairs": teaches.sum().float(),
                "accuracy": mean_over((chosen < rejected).float(), teaches).detach(),
            }
            yield Step(loss, figures=figures)
