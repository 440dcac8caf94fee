"""Are predicted probabilities shares of votes? Brier score, log loss and the reliability curve, for soft labels.

Which side of a pair is called chosen is known only after the vote, so a curve of P(chosen) against its label would
flatter or damn every model alike. Each pair is therefore turned by the *model*: `confidence = max(p, 1 - p)` stands
against the share of votes on the side that the model favours. That is the symmetric diagram, folded at 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics.intervals import Estimate, multinomial_weights


@dataclass(frozen=True)
class Reliability:
    """A reliability curve in bins of equal mass, from least to most confident.

    Attributes:
        confidence: mean predicted probability of the favoured side in each bin `[k]`, 0.5..1.
        share: mean share of votes that this side got `[k]`.
        count: pairs in each bin `[k]`.
        members: bin of each pair `[n]`.
        favoured: share of votes for the favoured side of each pair `[n]`.
        predicted: probability of the favoured side of each pair `[n]`.
    """

    confidence: Tensor
    share: Tensor
    count: Tensor
    members: Tensor
    favoured: Tensor
    predicted: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error, `sum_k n_k / n * |confidence_k - share_k|` (Naeini et al. 2015)."""
        gaps = (self.confidence - self.share).abs()
        return float((self.count * gaps).sum() / self.count.sum())


def reliability(probability: Tensor, target: Tensor, bins: int = 10) -> Reliability:
    """The reliability curve over bins that hold equally many pairs (Nguyen and O'Connor 2015).

    Args:
        probability: predicted P(chosen is preferred) `[n]`.
        target: share of votes for chosen `[n]`; vote ties count with 0.5.
        bins: how many; fewer are used when there are fewer pairs.

    Returns:
        The folded curve (see the module). Pairs predicted at exactly 1/2 have no favoured side: their share is 1/2.

    Raises:
        ShapeError: probability and target are not both `[n]` with n of at least 1.
        ValueRangeError: one of them outside [0, 1], or no bins.
    """
    probability, target = _checked(probability, target)
    if bins < 1:
        raise ValueRangeError(f"bins must be 1 or more, got {bins}")
    side = torch.sign(probability - 0.5)
    favoured = 0.5 + side * (target - 0.5)
    confidence = 0.5 + (probability - 0.5).abs()
    bins = min(bins, len(confidence))
    members = torch.empty(len(confidence), dtype=torch.int64)
    members[confidence.argsort(stable=True)] = torch.arange(len(confidence)) * bins // len(confidence)
    count = members.bincount(minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, members, values) / count

    return Reliability(mean(confidence), mean(favoured), count, members, favoured, confidence)


def calibration_error(curve: Reliability, clusters: Tensor, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The expected calibration error with a 95 % percentile bootstrap interval over clusters.

    The bins stay as they are; clusters are drawn anew, as in `clustered_mean`. An absolute gap only grows by noise, in the
    resamples as in the error itself, so the interval leans upwards: its upper end is the cautious reading.

    Args:
        curve: the reliability curve of n pairs.
        clusters: cluster number of each pair `[n]`, whole numbers from 0.
        resamples: how often the clusters are drawn anew.
        seed: of the draws.

    Returns:
        The error and its interval.

    Raises:
        ShapeError: clusters are not `[n]`.
    """
    gaps, sizes = _cluster_gaps(curve, clusters)
    weights = multinomial_weights(len(gaps), resamples, seed)
    errors = (weights @ gaps).abs().sum(dim=1) / (weights @ sizes)
    low, high = errors.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    # The error itself may lie below all of its resamples.
    return Estimate(curve.error, min(low, curve.error), max(high, curve.error), len(curve.members), len(gaps))


def calibration_floor(curve: Reliability, clusters: Tensor, resamples: int = 1000, seed: int = 0) -> float:
    """The calibration error that the truth itself would show on so few votes: what an error is to be compared with.

    The mean error after the sign of all gaps of a cluster has been drawn by lot (the wild bootstrap, Liu 1988): gaps as
    large and as alike within a prompt as these, but without a direction.

    Args:
        curve: the reliability curve of n pairs.
        clusters: cluster number of each pair `[n]`.
        resamples: how often lots are drawn.
        seed: of the draws.

    Raises:
        ShapeError: clusters are not `[n]`.
    """
    gaps, sizes = _cluster_gaps(curve, clusters)
    lots = torch.randint(2, (resamples, len(gaps)), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return float((lots @ gaps).abs().sum(dim=1).mean() / sizes.sum())


def _cluster_gaps(curve: Reliability, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of predicted less favoured by cluster and bin `[g k]`, and pairs by cluster `[g]`."""
    if clusters.shape != curve.members.shape:
        raise ShapeError(f"clusters must be {list(curve.members.shape)}, one a pair, got {list(clusters.shape)}")
    names, places = np.unique(clusters.numpy(), return_inverse=True)
    numbers, groups, bins = torch.from_numpy(places), len(names), len(curve.count)
    gaps = torch.zeros(groups * bins, dtype=torch.float64)
    gaps.index_add_(0, numbers * bins + curve.members, curve.predicted - curve.favoured)
    return gaps.view(groups, bins), numbers.bincount(minlength=groups).double()


def brier_score(probability: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the prediction from the share of votes, `(p - y)^2` of each pair `[n]` (Brier 1950)."""
    probability, target = _checked(probability, target)
    return (probability - target).square()


def soft_nll(log_prob: Tensor, log_prob_other: Tensor, target: Tensor) -> Tensor:
    """Log loss against a share of votes, `-y log p - (1 - y) log(1 - p)` of each pair `[n]`, in nats.

    Args:
        log_prob: `log P(chosen is preferred)` `[n]`.
        log_prob_other: `log P(rejected is preferred)` `[n]`, from the likelihood and not from `log(1 - p)`.
        target: share of votes for chosen `[n]`.

    Returns:
        The loss; its least value is the entropy of the votes, not 0.

    Raises:
        ShapeError: the three are not all `[n]`.
    """
    if not log_prob.shape == log_prob_other.shape == target.shape or log_prob.ndim != 1:
        raise ShapeError("log_prob, log_prob_other and target must all be [n]")
    y = target.double()
    # xlogy-like: where a side got no vote, its infinite log loss has weight 0 and must not become NaN.
    left = torch.where(y > 0, -y * log_prob.double(), 0.0)
    right = torch.where(y < 1, -(1 - y) * log_prob_other.double(), 0.0)
    return left + right


def _checked(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if probability.ndim != 1 or probability.shape != target.shape or not len(target):
        raise ShapeError(
            "probability and target must both be [n] with n of at least 1, "
            f"got {list(probability.shape)} and {list(target.shape)}"
        )
    for name, values in (("probability", probability), ("target", target)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueRangeError(f"{name} must lie in [0, 1]")
    return probability.double(), target.double()
