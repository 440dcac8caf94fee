"""Schedules of pruning: what they cost, and what they would have chosen from a pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dina_lrm.errors import ValueRangeError
from dina_lrm.scoring.selection import halving_schedule
from studies.search.pool import READINGS, Pool

__all__ = ["Schedule", "candidates", "chance_of_the_best", "replay"]

FIRSTS = (0.95, 0.9, 0.8, 0.65)  # levels at which halving may begin


@dataclass(frozen=True)
class Schedule:
    """Start so many, keep fewer after some steps, then take the best of those that are finished.

    Attributes:
        start: samples of a prompt.
        cuts: (steps taken, keep), in order.
        of: what is read on the way, "state" or "clean"; "random" reads nothing and "oracle" knows the end.
        final: what is read at the end.
    """

    start: int
    cuts: tuple[tuple[int, int], ...] = ()
    of: str = "state"
    final: str = "state"

    def label(self, sigmas: np.ndarray) -> str:
        """In words."""
        at = ", ".join(f"{keep} after step {place} (sigma {sigmas[place - 1]:.2f})" for place, keep in self.cuts)
        return f"{self.start}, then {at}, by {self.of}" if at else f"best of {self.start}" if self.start > 1 else "one"

    def passes(self, steps: int) -> int:
        """States whose velocity is asked for, a prompt."""
        alive, before, total = self.start, 0, 0
        for place, keep in (*self.cuts, (steps, 1)):
            total += alive * (place - before)
            alive, before = keep, place
        return total

    def reads(self) -> int:
        """States that the reward reads, a prompt."""
        alive = (self.start, *(keep for _, keep in self.cuts))
        return sum(alive[:-1]) + (alive[-1] if alive[-1] > 1 else 0)

    def cost(self, steps: int, read: float) -> float:
        """In passes of the network, a read being worth so many."""
        return self.passes(steps) + read * self.reads()


def candidates(steps: int, sigmas: np.ndarray, pool: int, cost: float, read: float) -> Iterator[Schedule]:
    """Schedules that cost at most so much, the widest of each shape.

    Args:
        steps: of the sampler.
        sigmas: levels after each step.
        pool: no schedule starts with more.
        cost: most passes a prompt.
        read: passes that a read is worth.
    """
    grid = torch.tensor([1.0, *sigmas])
    shapes: list[list[Schedule]] = []
    for keep in (1, 2, 3):
        for place in range(1, steps):
            shapes.append([Schedule(n, ((place, keep),)) for n in range(pool, keep, -1)])
            for later in range(place + 2, steps, 2):
                for between in (2 * keep, 3 * keep):
                    shapes.append([Schedule(n, ((place, between), (later, keep))) for n in range(pool, between, -1)])
    for first in FIRSTS:
        shapes.append([s for n in range(pool, 1, -1) if (s := _halving(grid, n, first)) is not None])
    seen = set()
    for shape in shapes:
        widest = next((s for s in shape if s.cost(steps, read) <= cost), None)
        if widest is not None and widest not in seen:
            seen.add(widest)
            yield from (Schedule(widest.start, widest.cuts, of) for of in READINGS)


def _halving(grid: torch.Tensor, start: int, first: float) -> Schedule | None:
    try:
        cuts = halving_schedule(grid, start, 1, first)
    except ValueRangeError:
        return None
    places = [int((grid <= cut.sigma + 1e-6).nonzero()[0]) for cut in cuts]
    return Schedule(start, tuple((p, cut.keep) for p, cut in zip(places, cuts, strict=True) if p < len(grid) - 1))


def replay(pool: Pool, schedule: Schedule, subsets: int, seed: int = 0) -> np.ndarray:
    """The oracle's utility of what a schedule takes of each prompt `[q]`, averaged over random subsets of the pool.

    Args:
        pool: of trajectories; samples that are not in a subset do not exist for it.
        schedule: that chooses.
        subsets: how many.
        seed: of them.
    """
    rng = np.random.default_rng(seed)
    prompts, size, steps = pool.state.shape
    total = np.zeros(prompts)
    for _ in range(subsets):
        alive = np.argsort(rng.random((prompts, size)), axis=1)[:, : schedule.start]
        for place, keep in (*schedule.cuts, (steps, 1)):
            read = np.take_along_axis(_reading(pool, schedule, place, rng), alive, axis=1)
            alive = np.take_along_axis(alive, np.argsort(-read, axis=1, kind="stable")[:, :keep], axis=1)
        total += np.take_along_axis(pool.oracle, alive, axis=1)[:, 0]
    return total / subsets


def _reading(pool: Pool, schedule: Schedule, place: int, rng: np.random.Generator) -> np.ndarray:
    of = schedule.final if place == pool.state.shape[2] else schedule.of
    if of == "random":
        return rng.random(pool.oracle.shape)
    return pool.oracle if of == "oracle" else getattr(pool, of)[:, :, place - 1]


def chance_of_the_best(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often, of two samples of a prompt, a reading favours the one that is worth more `[q]`; half where it cannot tell.

    Args:
        values: what was read `[q n]`.
        truth: what they are worth `[q n]`; couples of equal worth do not count.
    """
    left, right = np.triu_indices(truth.shape[1], 1)
    read, worth = values[:, left] - values[:, right], truth[:, left] - truth[:, right]
    credit = np.where(read == 0, 0.5, (read * worth > 0).astype(float))
    counts = worth != 0
    return (credit * counts).sum(axis=1) / np.maximum(1, counts.sum(axis=1))
