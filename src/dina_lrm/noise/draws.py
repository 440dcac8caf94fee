"""Noise as a function of its seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dina_lrm.errors import ValueRangeError


def seeded_noise(shape: Sequence[int], seed: int, draws: int = 1) -> Tensor:
    """Standard normal noise from a CPU float32 generator, so that every machine and device draws the same.

    Each draw is a call of its own on one generator: the first draw does not depend on how many follow.

    Args:
        shape: of one draw, `(c, h, w)`.
        seed: of the generator, 0 or more and below 2^63.
        draws: how many.

    Returns:
        `[draws c h w]` on the CPU, float32.

    Raises:
        ValueRangeError: a seed outside, or no draws.
    """
    if not 0 <= seed < 2**63:
        raise ValueRangeError(f"seed must be 0 or more and below 2^63, got {seed}")
    if draws < 1:
        raise ValueRangeError(f"draws must be 1 or more, got {draws}")
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(*shape, generator=generator) for _ in range(draws)])
