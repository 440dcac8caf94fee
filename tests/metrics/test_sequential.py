"""The sequential test keeps its promise by simulation, whatever the mean; known spreads make it faster, wrong ones do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dina_lrm.errors import ValueRangeError
from dina_lrm.metrics import SequentialTest, looks_at, moderated, student_quantile
from dina_lrm.types import Spread


def test_quantiles_are_those_of_student_and_of_the_normal():
    assert student_quantile(0.975, 5) == pytest.approx(stats.t.ppf(0.975, 5))
    assert student_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_a_moderated_variance_lies_between_what_was_known_and_what_is_seen():
    assert moderated(Spread(2.0, 4.0), 5.0, 3) == ((4 * 2 + 2 * 5) / 6, 6)
    assert moderated(Spread(2.0, 4.0), math.nan, 1) == (2.0, 4.0)
    assert moderated(None, 5.0, 3) == (5.0, 2)
    assert moderated(None, 0.0, 1) == (math.inf, 0)
    assert moderated(Spread(2.0, math.inf), 5.0, 30) == (2.0, math.inf)


def test_reach_by_hand():
    test = SequentialTest(9, 8, 0.08, Spread(4.0, math.inf))
    assert test.reach(1.0, 1) == pytest.approx(stats.norm.ppf(0.99) * 2 * math.sqrt(1 - 1 / 9))
    assert test.reach(1.0, 9) == 0
    assert SequentialTest(9, 7, 0.07).reach(1.0, 3) == pytest.approx(stats.t.ppf(0.99, 2) * math.sqrt(1 / 3 - 1 / 9))
    assert SequentialTest(9, 7, 0.07).reach(0.0, 1) == math.inf


def run(
    mean: float, total: int, error_rate: float, spread: Spread | None, trials: int, seed: int
) -> tuple[float, float]:
    """Share of stops that the whole budget contradicts, and mean number of draws."""
    draws = np.random.default_rng(seed).normal(mean, 1.0, (trials, total))
    test = SequentialTest(total, total - 1, error_rate, spread)
    wrong, spent = 0, 0
    for row in draws:
        for n in range(1, total + 1):
            variance = float(row[:n].var(ddof=1)) if n > 1 else 0.0
            if abs(row[:n].mean()) > test.reach(variance, n) or n == total:
                wrong += (row[:n].mean() > 0) != (row.mean() > 0)
                spent += n
                break
    return wrong / trials, spent / trials


@pytest.mark.parametrize("mean", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("spread", [None, Spread(1.0, 8.0), Spread(1.0, math.inf)])
@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_the_error_rate_holds_at_every_mean(mean, spread, error_rate):
    wrong, _ = run(mean, 9, error_rate, spread, 4000, seed=1)
    assert wrong <= error_rate + 3 * math.sqrt(error_rate * (1 - error_rate) / 4000)


def test_clear_questions_cost_less_and_knowledge_saves_more():
    unclear, clear = run(0.1, 9, 0.05, None, 500, 2)[1], run(4.0, 9, 0.05, None, 500, 2)[1]
    informed = run(4.0, 9, 0.05, Spread(1.0, 20.0), 500, 2)[1]
    assert informed < clear < unclear <= 9
    assert informed < 2


def test_a_spread_that_is_none_is_refused():
    with pytest.raises(ValueRangeError, match="dof"):
        Spread(1.0, 0.0)


def test_looks_grow_apart():
    assert looks_at(1, 9) == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert looks_at(2, 20, 2) == (2, 4, 6, 8, 10, 12, 14, 16, 20)
    assert looks_at(3, 3) == (3,) and looks_at(4, 2) == (2,)
    many = looks_at(1, 1024)
    assert many[-1] == 1024 and len(many) < 40 and sum(many) < 6 * 1024
