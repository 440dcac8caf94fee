"""What callers give, to what is asked, and what they get: the same at a model's door as at a client's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import index

import numpy as np
import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.scoring.protocol import Candidate, Images
from dina_lrm.types import Ranking


def levels_of(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels as numbers.

    Raises:
        ValueRangeError: a single number, or none at all.
    """
    if not isinstance(sigmas, Sequence | Tensor | np.ndarray):
        raise ValueRangeError(f"sigmas must be one or more levels such as (0.4,), got {sigmas!r}")
    return tuple(float(sigma) for sigma in sigmas)


def seeds_of(seed: int | Sequence[int]) -> int | tuple[int, ...]:
    """Whole numbers, also numpy's; nothing is rounded to one.

    Raises:
        ValueRangeError: something else.
    """
    try:
        return tuple(map(index, seed)) if isinstance(seed, Sequence | Tensor | np.ndarray) else index(seed)
    except TypeError as error:
        raise ValueRangeError(f"seed must be a whole number, or one a sample, got {seed!r}") from error


def pair_of(a: Candidate, b: Candidate) -> tuple[Images | None, Tensor | None]:
    """Two candidates of one form, as images or as latents.

    Raises:
        ShapeError: they are not of one form.
    """
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return [a, b], None
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.ndim < 3:
        raise ShapeError("a and b must both be pictures, or tensors [c h w] of one shape")
    both = torch.stack([a, b])
    return (both, None) if len(a) == 3 else (None, both)


def first_of(ranking: Ranking, k: int) -> Ranking:
    """A ranking whose order is cut to its `k` best.

    Raises:
        ValueRangeError: k below 1 or above the number of candidates.
    """
    if not 1 <= k <= len(ranking.order):
        raise ValueRangeError(f"k must lie in 1..{len(ranking.order)}, the number of candidates, got {k}")
    return replace(ranking, order=ranking.order[:k])
