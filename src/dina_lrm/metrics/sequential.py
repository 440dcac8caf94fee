"""When may drawing stop? A sequential test of what the mean over all draws will say, from the first few of them.

For draws that are independent and normal, whatever their mean, the mean over the first n less that over all N is normal
around 0 with variance `s^2 (1/n - 1/N)` and independent of the mean over all. So a mean over n that is farther from a
threshold than `t s sqrt(1/n - 1/N)` lies on the same side of it as the mean over all N, but for the error rate of t. The
error rate is shared evenly among the looks (Bonferroni), and s is estimated from the draws, moderated by what was known
of it before (Smyth 2004). The test is about the answer of the whole budget, and as N grows about the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dina_lrm.types import Spread


def student_quantile(probability: float, dof: float) -> float:
    """The value that a Student t of `dof` degrees of freedom (infinity: a normal) stays below with `probability`."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(probability) if math.isinf(dof) else stdtrit(dof, probability))


def moderated(spread: Spread | None, variance: float, count: int) -> tuple[float, float]:
    """Variance and degrees of freedom after `count` draws with sample variance `variance`.

    `(d0 s0^2 + (n - 1) s^2) / (d0 + n - 1)` with `d0 + n - 1` degrees of freedom (Smyth 2004, equation 3).

    Args:
        spread: of before; None for no knowledge.
        variance: unbiased sample variance; not looked at with a single draw.
        count: draws n, 1 or more.

    Returns:
        The variance, and its degrees of freedom; (infinity, 0) where nothing is known.
    """
    own = count - 1
    if spread is None:
        return (variance, own) if own else (math.inf, 0)
    if math.isinf(spread.dof):
        return spread.variance, math.inf
    dof = spread.dof + own
    return (spread.dof * spread.variance + (own * variance if own else 0.0)) / dof, dof


@dataclass(frozen=True)
class SequentialTest:
    """Of the mean over `total` draws, looked at now and then before that.

    Attributes:
        total: draws N of the whole budget, 1 or more.
        looks: how often it is looked at before all are drawn, at most.
        error_rate: probability, at most, that any look claims what the whole budget contradicts.
        spread: what was known of the variance of a draw.
    """

    total: int
    looks: int
    error_rate: float
    spread: Spread | None = None

    def reach(self, variance: float, count: int) -> float:
        """How far the mean over `count` draws may lie from the mean over all.

        Args:
            variance: unbiased sample variance of the draws so far.
            count: how many they are.

        Returns:
            `t s sqrt(1/n - 1/N)`; 0 once all were drawn, infinity where nothing is known of the spread.
        """
        if count >= self.total:
            return 0.0
        own, dof = moderated(self.spread, variance, count)
        if not dof:
            return math.inf
        t = student_quantile(1 - self.error_rate / max(1, self.looks), dof)
        return t * math.sqrt(own * (1 / count - 1 / self.total))


def looks_at(first: int, total: int, step: int = 1) -> tuple[int, ...]:
    """After how many draws to look: one by one while they are few, then a quarter more each time, and at the last.

    Args:
        first: draws before the first look.
        total: draws of the whole budget.
        step: draws come in so many at once; it divides `total`.

    Returns:
        Ascending numbers of draws that end with `total`.
    """
    looks = [min(first, total)]
    while looks[-1] < total:
        more = max(step, looks[-1] // 4 // step * step)
        looks.append(min(looks[-1] + more, total))
    return tuple(looks)
