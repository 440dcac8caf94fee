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

COUNTED = {"network passes": False, "passes and reads": True}


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


def choose(
    validation: Pool, test: Pool, budget: Budget, read: float, readings: Sequence[str] = READINGS
) -> list[dict[str, Any]]:
    """For each N and each way of counting: the schedule that gains most over best-of-N on validation, and its gain on test.

    Args:
        validation: chooses.
        test: is asked once a row.
        budget: of the study.
        read: passes of the network that a read is worth.
        readings: that schedules may use on the way.
    """
    rows = []
    for number in budget.finished:
        plain = Schedule(number)
        before, base = (replay(pool, plain, budget.subsets) for pool in (validation, test))
        for counted, with_reads in COUNTED.items():
            price = read if with_reads else 0.0
            room = plain.cost(budget.steps, price)
            found = candidates(budget.steps, validation.sigmas, budget.pool, room, price)
            tried = [one for one in found if one.of in readings]
            gains = [replay(validation, one, budget.subsets) - before for one in tried]
            best = int(np.argmax([gain.mean() for gain in gains]))
            chosen = tried[best]
            by = {
                "test": chosen,
                "by chance": replace(chosen, of="random"),
                "by the oracle": replace(chosen, of="oracle"),
            }
            rows.append(
                {
                    "finished": number,
                    "counted": counted,
                    "tried": len(tried),
                    "at most": sum(one.start == budget.pool for one in tried),
                    "chosen": chosen.label(validation.sigmas),
                    "passes": chosen.passes(budget.steps),
                    "reads": chosen.reads(),
                    "cost": round(chosen.cost(budget.steps, price) / room, 3),
                    "validation": estimate(gains[best]),
                    **{name: estimate(replay(test, one, budget.subsets) - base) for name, one in by.items()},
                }
            )
    return rows


def over_one(utility: Sequence[float], start: int, pool: Pool) -> np.ndarray:
    """Gain over one sample, `[q]`: over the mean of those that the search itself began as, which are the pool's first.

    Args:
        utility: of each prompt's picture.
        start: samples that the search began with.
        pool: of the same prompts and noises.
    """
    return np.array(utility) - pool.oracle[:, :start].mean(axis=1)


def live_rows(
    test: Pool, found: Sequence[tuple[Arm, Run, list[float]]], prices: Prices, budget: Budget
) -> list[dict[str, Any]]:
    """What was run, beside one sample and beside best-of-N of the next lower and the next higher price.

    Args:
        test: pool of the same prompts.
        found: each arm, its run on test, and its gain over one sample on validation.
        prices: of reads and gradients.
        budget: of the study.
    """
    one, rows = test.oracle.mean(axis=1), []
    for arm, ran, validation in found:
        price, gain = prices.of(arm, ran), over_one(ran.utility, arm.start, test)
        cheaper = min(budget.pool - 1, max(1, int(price / (budget.steps + prices.read))))
        rivals = {number: replay(test, Schedule(number), budget.subsets) - one for number in (cheaper, cheaper + 1)}
        rows.append(
            {
                "label": arm.label,
                "passes": round(price, 1),
                "validation": validation,
                "over one": estimate(gain),
                "over best of": [
                    {
                        "finished": number,
                        "passes": round(Schedule(number).cost(budget.steps, prices.read), 1),
                        "gain": estimate(gain - rival),
                    }
                    for number, rival in rivals.items()
                ],
            }
        )
    return rows
