from __future__ import annotations

import pytest

from dina_lrm.errors import ValueRangeError
from dina_lrm.runtime.schedule import SCHEDULES, ScheduleName, num_warm_up_steps

NAMES: tuple[ScheduleName, ...] = ("constant", "linear", "cosine")


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_warms_up_from_above_zero_to_one(name: ScheduleName) -> None:
    factors = [SCHEDULES[name](step, 1000, 10) for step in range(10)]
    assert factors == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_lies_in_zero_to_one_and_never_rises_after_warm_up(name: ScheduleName) -> None:
    factors = [SCHEDULES[name](step, 50, 5) for step in range(60)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_the_shapes_meet_their_known_points() -> None:
    assert SCHEDULES["constant"](99, 100, 0) == 1
    assert SCHEDULES["linear"](50, 100, 0) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](50, 100, 0) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](25, 100, 0) == pytest.approx(0.853553, abs=1e-6)
    for name in ("linear", "cosine"):
        assert SCHEDULES[name](100, 100, 0) == pytest.approx(0)
        assert SCHEDULES[name](99, 100, 10) > 0


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_as_long_as_the_run_divides_by_nothing(name: ScheduleName) -> None:
    assert SCHEDULES[name](4, 5, 5) == pytest.approx(1)


def test_warm_up_is_a_count_or_a_fraction() -> None:
    assert num_warm_up_steps(7, 100) == 7
    assert num_warm_up_steps(0.05, 200) == 10
    assert num_warm_up_steps(0.0, 200) == 0
    for wrong in (-1, 1.0, -0.5):
        with pytest.raises(ValueRangeError, match="warm_up"):
            num_warm_up_steps(wrong, 100)
