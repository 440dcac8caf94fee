"""Intervals: how far a mean may be off, by the bootstrap over clusters and by Wilson's formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: the mean; NaN if nothing was counted.
        low: lower end of the interval.
        high: upper end of the interval.
        count: how many values stand behind it.
        clusters: in how many clusters they lie.
    """

    value: float
    low: float
    high: float
    count: int
    clusters: int


def cluster_index(names: Sequence[str]) -> Tensor:
    """Names to whole numbers 0, 1, 2 ... in order of first appearance, `[n]`."""
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(name, len(seen)) for name in names], dtype=torch.int64)


def clustered_mean(
    values: Tensor, clusters: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean with a percentile bootstrap interval over clusters (Field and Welsh 2007, the randomised cluster bootstrap).

    Pairs of one prompt are alike, so prompts are resampled, not pairs: with `w` drawn from a multinomial over the G
    clusters, a resampled mean is `sum_g w_g sum_i x_gi / sum_g w_g n_g`. NaN values are left out.

    Args:
        values: `[n]`.
        clusters: cluster number of each value `[n]`, whole numbers from 0.
        resamples: how often the clusters are drawn anew.
        level: share of the resampled means that the interval holds.
        seed: of the draws.

    Returns:
        The mean and its interval; with a single cluster the interval is the mean itself, which says nothing.

    Raises:
        ShapeError: values and clusters differ in shape.
        ValueRangeError: `level` outside (0, 1), or fewer than 2 resamples.
    """
    if values.ndim != 1 or values.shape != clusters.shape:
        raise ShapeError(f"values and clusters must both be [n], got {list(values.shape)} and {list(clusters.shape)}")
    if not 0 < level < 1 or resamples < 2:
        raise ValueRangeError(f"level must lie in (0, 1) and resamples be 2 or more, got {level:g} and {resamples}")
    counted = ~values.isnan()
    values, clusters = values[counted].double(), clusters[counted]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    counts = clusters.bincount().double()
    sums = torch.zeros_like(counts).index_add_(0, clusters, values)
    sums, counts = sums[counts > 0], counts[counts > 0]
    weights = multinomial_weights(len(counts), resamples, seed)
    means = (weights @ sums) / (weights @ counts)
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tail).tolist()
    return Estimate(float(values.mean()), low, high, len(values), len(counts))


def multinomial_weights(clusters: int, resamples: int, seed: int) -> Tensor:
    """How often each cluster is drawn in each resample, `[resamples clusters]`; every cluster has one vote a draw."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(clusters, (resamples, clusters), generator=generator)
    ones = torch.ones_like(drawn, dtype=torch.float64)
    return torch.zeros(resamples, clusters, dtype=torch.float64).scatter_add_(1, drawn, ones)


def wilson_interval(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of independent trials (Wilson 1927).

    `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)` with `p = successes / n`.

    Args:
        successes: number of successes; halves (ties) are welcome.
        trials: number of trials n.
        level: share of the time that the interval shall hold the truth.

    Returns:
        Its two ends, within [0, 1]; (0, 1) when nothing was tried.

    Raises:
        ValueRangeError: successes outside [0, trials].
    """
    if not 0 <= successes <= trials:
        raise ValueRangeError(f"successes must lie in [0, {trials}], got {successes:g}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
