"""Agreement of two orders of the same candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-b, `(concordant - discordant) / sqrt(untied_a * untied_b)` (Kendall 1945).

    Args:
        a: one value a candidate `[n]`.
        b: the other `[n]`.

    Returns:
        -1 (reversed) to 1 (same order); NaN when one side has nothing but ties.

    Raises:
        ShapeError: the two are not both `[n]`.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ShapeError(f"the two orders must both be [n], got {list(a.shape)} and {list(b.shape)}")
    first, second = torch.triu_indices(len(a), len(a), offset=1)
    sign_a, sign_b = torch.sign(a[first] - a[second]).double(), torch.sign(b[first] - b[second]).double()
    scale = math.sqrt(float(sign_a.abs().sum() * sign_b.abs().sum()))
    return float((sign_a * sign_b).sum()) / scale if scale else math.nan


def kendall_tau_by_group(a: Tensor, b: Tensor, groups: Tensor) -> Tensor:
    """`kendall_tau` within each group, `[g]` float64: candidates of different prompts are never compared.

    Args:
        a: one value a candidate `[n]`.
        b: the other `[n]`; NaN means unknown and is left out.
        groups: group of each candidate `[n]`, whole numbers from 0.

    Returns:
        tau-b of each group; NaN where fewer than two candidates have an order.
    """
    known = ~(a.isnan() | b.isnan())
    total = int(groups.max()) + 1 if len(groups) else 0
    members = [known & (groups == group) for group in range(total)]
    return torch.tensor([kendall_tau(a[m], b[m]) for m in members], dtype=torch.float64)
