"""Searches that draw or push, and so must be run: guidance by the reward's gradient, SMC, beam; and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cost import Cost, measure
from dina_lrm.generation import FlowNoise, RewardGuidance, beam, best_of_n, smc, state_at
from dina_lrm.generation.search import Found, Of
from dina_lrm.scoring.selection import inside
from dina_lrm.worlds.emoji import seed_of
from studies.search.pool import World

__all__ = ["FAMILIES", "Arm", "Prices", "Run", "prices_of", "run"]

BAND, NOISE = (0.05, 0.9), FlowNoise(0.3)


@dataclass(frozen=True)
class Arm:
    """One search.

    Attributes:
        label: in words.
        start: samples of a prompt.
        search: of a world, noise, prompts and steps.
        guides: what the gradient is taken of at levels in `BAND`, if any is.
    """

    label: str
    start: int
    search: Callable[[World, Tensor, Sequence[str], int], Found]
    guides: Of | None = None


def _guided(scale: float, of: Of) -> Arm:
    def search(world: World, noise: Tensor, prompts: Sequence[str], steps: int) -> Found:
        guidance = RewardGuidance(world.judge(prompts), scale, BAND, relative=True, of=of)
        # One sample a prompt: there is nothing to choose among, and nothing is read at the end.
        found = best_of_n(world.field, noise, world.text(prompts), world.grid(steps), _unread, guidance=guidance)
        return replace(found, reward_evaluations=0)

    return Arm(f"guidance {scale:g} of the {'clean latents' if of == 'clean' else of}", 1, search, of)


def _unread(state: Any, prompt: Tensor) -> Tensor:
    return torch.zeros(len(prompt))


def _smc(number: int, temperature: float) -> Arm:
    def search(world: World, noise: Tensor, prompts: Sequence[str], steps: int) -> Found:
        text, judge, seeds = world.text(prompts), world.judge(prompts), _seeds(prompts)
        grid = world.grid(steps)
        found = smc(world.field, noise, text, grid, judge, temperature=temperature, seeds=seeds, step_noise=NOISE)
        return replace(found, latents=found.latents[found.best(len(prompts))])

    return Arm(f"SMC of {number}, temperature {temperature:g}", number, search)


def _beam(width: int, branches: int) -> Arm:
    def search(world: World, noise: Tensor, prompts: Sequence[str], steps: int) -> Found:
        text, judge, seeds = world.text(prompts), world.judge(prompts), _seeds(prompts)
        grid = world.grid(steps)
        return beam(world.field, noise, text, grid, judge, branches=branches, seeds=seeds, step_noise=NOISE, keep=1)

    return Arm(f"beam of {width}, {branches} branches", width, search)


def _seeds(prompts: Sequence[str]) -> list[int]:
    return [seed_of("search", prompt) for prompt in prompts]


# The best of a family on validation is asked on test.
FAMILIES: dict[str, tuple[Arm, ...]] = {
    "guidance of the state": tuple(_guided(scale, "state") for scale in (0.05, 0.1, 0.2)),
    "guidance of the clean latents": tuple(_guided(scale, "clean") for scale in (0.05, 0.1, 0.2)),
    "SMC": tuple(_smc(4, temperature) for temperature in (0.1, 0.3)),
    "beam": (_beam(4, 2), _beam(4, 4)),
}


@dataclass(frozen=True)
class Run:
    """What a search came to.

    Attributes:
        utility: the oracle's, of each prompt's picture.
        passes: of the network, a prompt.
        reads: of the reward without gradient, a prompt.
        guided: steps of a prompt at which a gradient was taken.
    """

    utility: list[float]
    passes: float
    reads: float
    guided: int


def run(world: World, arm: Arm, prompts: Sequence[str], steps: int, at_once: int = 16) -> Run:
    """Search for a picture of every prompt.

    Args:
        world: of them.
        arm: searches.
        prompts: each with a noise of its own.
        steps: of the sampler.
        at_once: prompts in a batch.
    """
    utility: list[float] = []
    passes = reads = 0
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        found = arm.search(world, world.noise(some, arm.start), some, steps)
        utility += world.utility(found.latents, some).tolist()
        passes, reads = passes + found.evaluations, reads + found.reward_evaluations
    guided = sum(inside(BAND, level) for level in world.grid(steps)[:-1].tolist()) if arm.guides else 0
    return Run(utility, passes / len(prompts), reads / len(prompts), guided)


@dataclass(frozen=True)
class Prices:
    """Operations, in passes of the network.

    Attributes:
        read: a read of the reward.
        read_with_gradient: the same with the gradient to what is read.
        pass_with_gradient: a pass with the gradient to its state.
    """

    read: float
    read_with_gradient: float
    pass_with_gradient: float

    def of(self, arm: Arm, found: Run) -> float:
        """What a search costs a prompt."""
        more = self.read_with_gradient + (self.pass_with_gradient - 1 if arm.guides == "clean" else 0)
        return found.passes + found.reads * self.read + found.guided * more


def prices_of(world: World, prompt: str, steps: int) -> Prices:
    """Count matrix products, convolutions and attention; text is encoded beforehand and not counted."""
    text, judge, sigma = world.text([prompt]), world.judge([prompt]), float(world.grid(steps)[1])
    latents, row = world.noise([prompt], 1), torch.zeros(1, dtype=torch.int64)

    def price(read: Callable[[Tensor], Tensor]) -> Cost:
        # Fused attention has no formula in the counter; in its plain form it is two products.
        with sdpa_kernel([SDPBackend.MATH]):
            return measure(read, latents, peak=False)

    network = price(lambda noised: world.field(state_at(noised, sigma), text))
    reward = price(lambda noised: judge(state_at(noised, sigma), row))
    with_gradient = [float(cost.flops_with_gradient or 0) / network.flops for cost in (reward, network)]
    return Prices(reward.flops / network.flops, *with_gradient)
