"""From pools and live runs to the numbers of the page: schedules are chosen on validation, and asked on test once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dina_lrm.metrics import clustered_mean
from studies.search.live import Arm, Prices, Run
from studies.search.pool import READINGS, Pool
from studies.search.schedules import Schedule, candidates, chance_of_the_best, replay
from studies.search.settings import Budget

__all__ = ["choose", "early_decision", "estimate", "ladder", "live_rows", "over_one"]

BARRED = {"network passes": False, "passes and reads": True}


def estimate(values: np.ndarray) -> list[float]:
    """Mean over prompts, and the ends of its 95 % interval."""
    found = clustered_mean(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)), torch.arange(len(values)))
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def early_decision(pool: Pool) -> list[dict[str, Any]]:
    """After each step, how often a reading favours what the oracle prefers of two samples, and what the reward itself will."""
    final = pool.state[:, :, -1]
    return [
        {
            "sigma": float(sigma),
            "of": of,
            "oracle": estimate(chance_of_the_best(getattr(pool, of)[:, :, place], pool.oracle)),
            "final": estimate(chance_of_the_best(getattr(pool, of)[:, :, place], final)),
        }
        for of in READINGS
        for place, sigma in enumerate(pool.sigmas)
    ]


def ladder(pool: Pool, subsets: int) -> list[dict[str, Any]]:
    """Best-of-N over one sample, by the reward and by the oracle itself."""
    one = pool.oracle.mean(axis=1)
    return [
        {
            "finished": number,
            **{
                by: estimate(replay(pool, Schedule(number, final=reading), subsets) - one)
                for by, reading in (("reward", "state"), ("oracle", "oracle"))
            },
        }
        for number in (2, 4, 8, 16)
        if number <= pool.oracle.shape[1]
    ]


def choose(validation: Pool, test: Pool, budget: Budget, read: float) -> list[dict[str, Any]]:
    """For each N and each way of counting: the schedule that gains most over best-of-N on validation, and its gain on test.

    Args:
        validation: chooses.
        test: is asked once a row.
        budget: of the study.
        read: passes of the network that a read is worth.
    """
    rows = []
    for number in budget.finished:
        plain = Schedule(number)
        base = {name: replay(pool, plain, budget.subsets) for name, pool in (("v", validation), ("t", test))}
        for counted, with_reads in BARRED.items():
            price = read if with_reads else 0.0
            room = plain.cost(budget.steps, price)
            tried = list(candidates(budget.steps, validation.sigmas, budget.pool, room, price))
            gains = [replay(validation, one, budget.subsets) - base["v"] for one in tried]
            best = int(np.argmax([gain.mean() for gain in gains]))
            chosen = tried[best]

            def on_test(schedule: Schedule, base: np.ndarray = base["t"]) -> list[float]:
                return estimate(replay(test, schedule, budget.subsets) - base)

            rows.append(
                {
                    "finished": number,
                    "counted": counted,
                    "tried": len(tried),
                    "chosen": chosen.label(validation.sigmas),
                    "passes": chosen.passes(budget.steps),
                    "reads": chosen.reads(),
                    "cost": round(chosen.cost(budget.steps, price) / room, 3),
                    "validation": estimate(gains[best]),
                    "test": on_test(chosen),
                    "by chance": on_test(replace(chosen, of="random")),
                    "by the oracle": on_test(replace(chosen, of="oracle")),
                }
            )
    return rows


def live_rows(
    test: Pool, found: Sequence[tuple[Arm, Run, list[float]]], prices: Prices, budget: Budget
) -> list[dict[str, Any]]:
    """What was run, beside one sample and beside the best of as many as its operations pay for.

    Args:
        test: pool of the same prompts.
        found: each arm, its run on test, and its gain over one sample on validation.
        prices: of reads and gradients.
        budget: of the study.
    """
    rows = []
    for arm, ran, validation in found:
        price = prices.of(arm, ran)
        equal = min(budget.pool, max(1, int(price / (budget.steps + prices.read))))
        values, best = np.array(ran.utility), replay(test, Schedule(equal), budget.subsets)
        rows.append(
            {
                "label": arm.label,
                "passes": round(price, 1),
                "validation": validation,
                "over one": estimate(values - test.oracle.mean(axis=1)),
                "equal": equal,
                "over best of equal": estimate(values - best),
            }
        )
    return rows


def over_one(values: Sequence[float], pool: Pool) -> list[float]:
    """Gain of utilities over one sample of the same prompts."""
    return estimate(np.array(values) - pool.oracle.mean(axis=1))
