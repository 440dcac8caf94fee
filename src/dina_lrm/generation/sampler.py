"""Sampling a rectified flow: the grid of noise levels, one step as it is or with noise in it, and a whole rollout.

`x_s = (1 - s) x_0 + s e` and `v = e - x_0`, so `x_0 = x_s - s v` and `e = x_s + (1 - s) v`. A grid falls from
`s_0 = 1` (or just below) to `s_T = 0`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.noise.process import expand_sigma
from dina_lrm.types import Conditioning, NoisedState, TensorRecord

__all__ = [
    "CpsNoise",
    "FlowNoise",
    "Guided",
    "StepNoise",
    "Trajectory",
    "Transition",
    "clean",
    "gaussian_log_prob",
    "ode_step",
    "rollout",
    "state_at",
]

Field: TypeAlias = Callable[[NoisedState, Conditioning], Tensor]


def clean(state: NoisedState, velocity: Tensor) -> Tensor:
    """What a velocity says of the clean latents: `x_0 = x_s - s v`, `[b c h w]`."""
    return state.noised_latents - expand_sigma(state.sigma, velocity) * velocity


def ode_step(state: NoisedState, velocity: Tensor, following: float) -> NoisedState:
    """One Euler step down to the level that follows: `x' = x + (s' - s) v`."""
    step = expand_sigma(following - state.sigma, velocity)
    return state_at(state.noised_latents + step * velocity, following)


def exact(tensor: Tensor) -> Tensor:
    """In float32 at least: log-probabilities and steps are differences that half precision loses."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def state_at(noised_latents: Tensor, sigma: float) -> NoisedState:
    """Noised latents, all at one level."""
    return NoisedState(noised_latents, torch.full((len(noised_latents),), sigma, device=noised_latents.device))


@dataclass(frozen=True)
class Transition:
    """Where a step with noise in it may lead: a normal distribution.

    Attributes:
        mean: `[b c h w]`.
        std: of every number.
    """

    mean: Tensor
    std: float


class StepNoise(ABC):
    """How a sampler's step is made random without changing where all its samples are distributed."""

    @abstractmethod
    def transition(self, state: NoisedState, velocity: Tensor, following: float, first: float) -> Transition:
        """The step from a state down to a level.

        Args:
            state: all of one level.
            velocity: of the network there.
            following: the level below.
            first: the level of the grid after its first; it stands for 1, where the spread has no end.
        """

    @abstractmethod
    def log_prob(self, sample: Tensor, transition: Transition) -> Tensor:
        """Of where the step led, `[b]`: the mean over a sample's numbers, in float32; constants may be left out."""


@dataclass(frozen=True)
class FlowNoise(StepNoise):
    """The SDE of Flow-GRPO (Liu et al. 2025, equation 9): spread `a sqrt(s / (1 - s))`, its drift put right for it.

    Attributes:
        level: a.
    """

    level: float = 0.7

    def transition(self, state: NoisedState, velocity: Tensor, following: float, first: float) -> Transition:
        sigma = float(state.sigma[0])
        step = following - sigma
        spread = self.level * math.sqrt(sigma / (1 - (first if sigma >= 1 else sigma)))
        latents = exact(state.noised_latents)
        mean = latents * (1 + spread**2 / (2 * sigma) * step)
        mean = mean + velocity * (1 + spread**2 * (1 - sigma) / (2 * sigma)) * step
        return Transition(mean, spread * math.sqrt(-step))

    def log_prob(self, sample: Tensor, transition: Transition) -> Tensor:
        return gaussian_log_prob(sample, transition)


@dataclass(frozen=True)
class CpsNoise(StepNoise):
    """Steps that keep the coefficients of the flow (Flow-CPS): noise is exchanged for noise, never added on top.

    Attributes:
        level: a; the share of the noise that is new is `sin(a pi / 2)`.
    """

    level: float = 0.8

    def transition(self, state: NoisedState, velocity: Tensor, following: float, first: float) -> Transition:
        sigma = expand_sigma(state.sigma, velocity)
        latents = exact(state.noised_latents)
        picture, noise = latents - sigma * velocity, latents + (1 - sigma) * velocity
        std = following * math.sin(self.level * math.pi / 2)
        return Transition((1 - following) * picture + math.sqrt(following**2 - std**2) * noise, std)

    def log_prob(self, sample: Tensor, transition: Transition) -> Tensor:
        return -(exact(sample) - transition.mean).square().flatten(1).mean(dim=1)


def gaussian_log_prob(sample: Tensor, transition: Transition) -> Tensor:
    """Log-density of a sample, averaged over its numbers, `[b]`.

    Args:
        sample: `[b c h w]`.
        transition: with a spread above 0.
    """
    scaled = (exact(sample) - exact(transition.mean)) / transition.std
    return (-0.5 * scaled.square() - math.log(transition.std) - 0.5 * math.log(2 * math.pi)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance around a velocity field: `v = v_negative + w (v_prompt - v_negative)` (Ho and Salimans 2022).

    Attributes:
        field: asked for both at once.
        negative: encoded empty (or unwanted) prompt, of one.
        scale: w; 1 asks for the prompt alone.
    """

    field: Field
    negative: Conditioning
    scale: float

    def __call__(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """The guided velocity `[b c h w]`."""
        if self.scale == 1:
            return self.field(state, conditioning)
        both = NoisedState(state.noised_latents.repeat(2, 1, 1, 1), state.sigma.repeat(2))
        unwanted = self.negative.map(lambda tensor: tensor.expand(len(conditioning), *tensor.shape[1:]))
        prompt, negative = self.field(both, Conditioning.cat([conditioning, unwanted])).chunk(2)
        return negative + self.scale * (prompt - negative)


@dataclass(frozen=True)
class Trajectory(TensorRecord):
    """What a rollout went through.

    Attributes:
        states: noised latents at every level of the grid `[t + 1 b c h w]`.
        sigmas: the grid `[t + 1]`.
        log_probs: of each step with noise in it, as they were when it was taken `[t b]`; NaN for the others.
    """

    states: Tensor
    sigmas: Tensor
    log_probs: Tensor

    @property
    def latents(self) -> Tensor:
        """Where it ended `[b c h w]`."""
        return self.states[-1]

    def state(self, place: int) -> NoisedState:
        """Where it stood at a place of the grid."""
        return state_at(self.states[place], float(self.sigmas[place]))


def rollout(
    field: Field,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    *,
    stop: int | None = None,
    step_noise: StepNoise | None = None,
    window: range | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Sample from noise down a grid.

    Args:
        field: velocities; gradients flow where they are on.
        noise: `[b c h w]`, standard normal.
        conditioning: one a sample.
        sigmas: the grid `[t + 1]`, falling.
        stop: steps to take; None takes all.
        step_noise: makes steps random; None leaves them as they are.
        window: the steps that it makes random; None for all but the last, which leads to a clean picture.
        generator: on the CPU; of that randomness.

    Returns:
        All states on the way.

    Raises:
        ShapeError: noise and prompts are not as many.
        ValueRangeError: a grid that does not fall.
    """
    if len(noise) != len(conditioning):
        raise ShapeError(f"{len(noise)} samples need as many prompts, got {len(conditioning)}")
    grid = sigmas.tolist()
    if any(low >= high for high, low in zip(grid, grid[1:], strict=False)):
        raise ValueRangeError(f"the levels of a rollout must fall, got {grid}")
    steps = len(grid) - 1 if stop is None else stop
    drawn = range(len(grid) - 2) if window is None else window
    latents, states, log_probs = noise, [noise], []
    for step in range(steps):
        state, following = state_at(latents, grid[step]), grid[step + 1]
        velocity = field(state, conditioning)
        if step_noise is None or step not in drawn:
            latents = ode_step(state, velocity, following).noised_latents
            log_probs.append(torch.full((len(noise),), math.nan, device=noise.device))
        else:
            towards = step_noise.transition(state, velocity, following, grid[1])
            fresh = torch.randn(noise.shape, generator=generator).to(noise.device)
            latents = towards.mean + towards.std * fresh
            log_probs.append(step_noise.log_prob(latents, towards))
        states.append(latents)
    taken = torch.stack(log_probs) if log_probs else noise.new_empty(0, len(noise))
    return Trajectory(torch.stack(states), sigmas[: steps + 1], taken)
