"""Learning-rate schedules: pure functions from an optimiser step to a factor in [0, 1].

A step here is an optimiser step, counted from 0, whatever the number of processes or of accumulated micro steps.
Every schedule warms up linearly: the first step is already above 0, the last warm-up step is at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from dina_lrm.errors import ValueRangeError

__all__ = ["SCHEDULES", "ScheduleName", "constant", "cosine", "linear", "num_warm_up_steps"]

ScheduleName = Literal["constant", "linear", "cosine"]


def num_warm_up_steps(warm_up: int | float, num_steps: int) -> int:
    """Steps of warm-up: an int is a count, a float a fraction of all steps.

    Raises:
        ValueRangeError: a negative count, or a fraction outside [0, 1).
    """
    if isinstance(warm_up, int):
        if warm_up < 0:
            raise ValueRangeError(f"warm_up must be 0 steps or more, got {warm_up}")
        return warm_up
    if not 0 <= warm_up < 1:
        raise ValueRangeError(f"warm_up as a fraction must be in [0, 1), got {warm_up:g}; write an integer for steps")
    return round(warm_up * num_steps)


def _progress(step: int, num_steps: int, warm_up: int) -> float:
    """Share of the steps after warm-up that lie behind `step`, 0 to 1."""
    return min(max(step - warm_up, 0) / max(num_steps - warm_up, 1), 1.0)


def _rising(step: int, warm_up: int) -> float:
    return min((step + 1) / warm_up, 1.0) if warm_up else 1.0


def constant(step: int, num_steps: int, warm_up: int = 0) -> float:
    """Warm-up, then 1."""
    return _rising(step, warm_up)


def linear(step: int, num_steps: int, warm_up: int = 0) -> float:
    """Warm-up, then a straight line from 1 that would meet 0 at `num_steps`."""
    return _rising(step, warm_up) * (1 - _progress(step, num_steps, warm_up))


def cosine(step: int, num_steps: int, warm_up: int = 0) -> float:
    """Warm-up, then half a cosine from 1 that would meet 0 at `num_steps` (Loshchilov & Hutter 2017)."""
    return _rising(step, warm_up) * (1 + math.cos(math.pi * _progress(step, num_steps, warm_up))) / 2


SCHEDULES: dict[ScheduleName, Callable[[int, int, int], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
