"""Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), with CPS noise, and with a window of steps (Flow-GRPO-Fast, MixGRPO).

A group of samples a prompt is drawn with noise in the steps; each sample's advantage over its group raises or lowers the
log-probability of the steps that led to it, by a clipped ratio, near the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms.base import Actors, Algorithm, PromptBatch, Step, group_advantages, mean_over, pulled
from dina_lrm.errors import ValueRangeError
from dina_lrm.generation import FlowNoise, StepNoise, Transition, rollout
from dina_lrm.types import NoisedState

__all__ = ["FlowGrpo"]


@dataclass
class FlowGrpo(Algorithm):
    """`loss = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl KL(policy || reference)`, a step of the grid at a time.

    `rho = exp(log p - log p_old)`, both means over a sample's numbers. `KL = ||mean - mean_ref||^2 / (2 std^2)`.

    Attributes:
        group_size: samples a prompt.
        noise: of the steps that are learned from.
        window: learned from are so many consecutive steps, drawn from the first half of the grid; None takes every step but
            the last.
        clip: c.
        kl: weight of the divergence; 0 never asks the reference.
        spread: of advantages, see `group_advantages`.
        advantage_limit: of their size.
        epochs: times that a rollout is learned from.
        shared_noise: samples of a prompt begin as the same noise (DanceGRPO, arXiv 2505.07818): what tells them apart is then
            the noise of the steps that are learned from, and not the luck of where they began.
    """

    group_size: int = 24
    noise: StepNoise = FlowNoise(0.7)
    window: int | None = None
    clip: float = 1e-4
    kl: float = 0.04
    spread: str = "group"
    advantage_limit: float = 5.0
    epochs: int = 1
    shared_noise: bool = False

    def strengthen(self, factor: float) -> None:
        self.kl = pulled("kl", self.kl, factor)

    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        window = self._window(len(actors.sigmas) - 1, generator)
        with torch.no_grad():
            way = rollout(
                actors.guided,
                self._beginnings(batch),
                batch.conditioning,
                actors.sigmas,
                step_noise=self.noise,
                window=window,
                generator=generator,
            )
            judged = actors.reward(way.latents, batch)
        advantages = group_advantages(judged, self.group_size, self.spread, self.advantage_limit)
        for _ in range(self.epochs):
            for place in window:
                now = self._transition(actors, way.state(place), batch, actors.sigmas, place)
                log_prob = self.noise.log_prob(way.states[place + 1], now)
                ratio = (log_prob - way.log_probs[place]).exp()
                surrogate = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - self.clip, 1 + self.clip))
                loss, figures = mean_over(surrogate, judged.valid), {"ratio": ratio.detach().mean()}
                if self.kl:
                    divergence = mean_over(self._divergence(actors, way.state(place), batch, place, now), judged.valid)
                    loss, figures = loss + self.kl * divergence, figures | {"kl": divergence.detach()}
                figures |= {
                    "reward": mean_over(judged.reward, judged.valid),
                    "clipped": ((ratio - 1).abs() > self.clip).float().mean(),
                }
                yield Step(loss / len(window), ends=place == window[-1], figures=figures)

    def _beginnings(self, batch: PromptBatch) -> Tensor:
        if not self.shared_noise:
            return batch.noise
        return batch.noise[:: self.group_size].repeat_interleave(self.group_size, dim=0)

    def _window(self, steps: int, generator: torch.Generator) -> range:
        """The steps with noise in them."""
        if self.window is None:
            return range(steps - 1)
        if not 0 < self.window <= steps - 1:
            raise ValueRangeError(f"window must be 1 to {steps - 1} of {steps} steps, got {self.window}")
        last = max(0, min(steps // 2, steps - 1) - self.window)
        first = int(torch.randint(last + 1, (), generator=generator))
        return range(first, first + self.window)

    def _transition(
        self, actors: Actors, state: NoisedState, batch: PromptBatch, sigmas: Tensor, place: int
    ) -> Transition:
        velocity = actors.guided(state, batch.conditioning)
        return self.noise.transition(state, velocity, float(sigmas[place + 1]), float(sigmas[1]))

    def _divergence(
        self, actors: Actors, state: NoisedState, batch: PromptBatch, place: int, now: Transition
    ) -> Tensor:
        with torch.no_grad(), actors.reference():
            before = self._transition(actors, state, batch, actors.sigmas, place)
        return (now.mean - before.mean).square().flatten(1).mean(dim=1) / (2 * now.std**2)
