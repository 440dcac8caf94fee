"""Pairwise accuracy: how often the order of two utilities is the order of the votes. Ties are said, never hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.types import check_finite


@dataclass(frozen=True)
class PairCredit:
    """What each comparison earned.

    Attributes:
        credit: 1 right, 0 wrong, 0.5 where the prediction is a tie; NaN where the votes are a tie, `[n]` float64.
        decided: where the votes are no tie, `[n]` bool; accuracy is the mean of credit over these.
        predicted_ties: number of decided pairs with equal utilities.
    """

    credit: Tensor
    decided: Tensor
    predicted_ties: int

    @property
    def vote_ties(self) -> int:
        """Number of pairs left out because nobody won the vote."""
        return int((~self.decided).sum())

    @property
    def accuracy(self) -> float:
        """Mean credit of the decided pairs; NaN if there are none."""
        return float(self.credit[self.decided].mean())


def pair_credit(margin: Tensor, target: Tensor) -> PairCredit:
    """Credit of each comparison, `(1 + sign(margin) * sign(target - 1/2)) / 2`.

    Args:
        margin: utility of chosen less utility of rejected `[n]`.
        target: share of votes for chosen `[n]` in 0..1; only the side of 1/2 counts, 1/2 itself is left out.

    Returns:
        Credit by pair. Swapping chosen and rejected (`-margin`, `1 - target`) changes nothing.

    Raises:
        ShapeError: the two differ in shape or are not `[n]`.
        ValueRangeError: margin not finite, or target outside [0, 1].
    """
    if margin.ndim != 1 or margin.shape != target.shape:
        raise ShapeError(f"margin and target must both be [n], got {list(margin.shape)} and {list(target.shape)}")
    check_finite("margin", margin)
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueRangeError("target must lie in [0, 1]: it is the share of votes for chosen")
    side = torch.sign(target.double() - 0.5)
    decided = side != 0
    credit = (1 + torch.sign(margin.double()) * side) / 2
    return PairCredit(
        credit=torch.where(decided, credit, torch.nan),
        decided=decided,
        predicted_ties=int((decided & (margin == 0)).sum()),
    )
