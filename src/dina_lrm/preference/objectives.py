"""Objectives: the log-probability of a choice to a loss, one number a pair.

A soft label is a share of votes. It needs the log-probability of both orders, `log_prob` (chosen first) and
`log_prob_reversed` (rejected first); a hard label needs the first only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError

Objective = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def nll(log_prob: Tensor, target: Tensor | None = None, log_prob_reversed: Tensor | None = None) -> Tensor:
    """Negative log-likelihood: `-log p`, or `-(y log p + (1 - y) log q)` for a soft label.

    Args:
        log_prob: log-probability p that chosen is preferred `[b]`.
        target: share y of votes for chosen `[b]`; None means 1.
        log_prob_reversed: log-probability q that rejected is preferred `[b]`; needed with target.

    Returns:
        `[b]`, 0 or more.

    Raises:
        ShapeError: target without log_prob_reversed.
    """
    if target is None:
        return -log_prob
    return -(target * log_prob + (1 - target) * _reversed(log_prob_reversed))


def fidelity(log_prob: Tensor, target: Tensor | None = None, log_prob_reversed: Tensor | None = None) -> Tensor:
    """Fidelity loss (Tsai et al. 2007; paper, equation 5): `1 - sqrt(p)`, or `1 - sqrt(y p) - sqrt((1 - y) q)`.

    Computed as `1 - exp(log p / 2)`: no epsilon. It redescends on purpose: a pair that is confidently wrong pulls less,
    which forgives wrong labels. Use `nll` where labels are clean.

    Args:
        log_prob: log-probability p that chosen is preferred `[b]`.
        target: share y of votes for chosen `[b]`; None means 1.
        log_prob_reversed: log-probability q that rejected is preferred `[b]`; needed with target.

    Returns:
        `[b]` in 0..1.

    Raises:
        ShapeError: target without log_prob_reversed.
    """
    if target is None:
        return -torch.expm1(log_prob / 2)
    agreement = target.sqrt() * (log_prob / 2).exp() + (1 - target).sqrt() * (_reversed(log_prob_reversed) / 2).exp()
    return 1 - agreement


def _reversed(log_prob_reversed: Tensor | None) -> Tensor:
    if log_prob_reversed is None:
        raise ShapeError("a soft target needs log_prob_reversed [b], the log-probability of the other order")
    return log_prob_reversed
