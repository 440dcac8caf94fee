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
    if draws < 1:
        raise ValueRangeError(f"draws must be 1 or more, got {draws}")
    return SeededNoise(shape, seed)(0, draws)


class SeededNoise:
    """The draws of one seed, a few at a time: asked for those that follow, it draws no other again.

    Args:
        shape: of one draw, `(c, h, w)`.
        seed: of the generator, 0 or more and below 2^63.
    """

    def __init__(self, shape: Sequence[int], seed: int) -> None:
        if not 0 <= seed < 2**63:
            raise ValueRangeError(f"seed must be 0 or more and below 2^63, got {seed}")
        self._shape, self._seed = shape, seed
        self._generator, self._drawn = torch.Generator().manual_seed(seed), 0

    def __call__(self, start: int, stop: int) -> Tensor:
        """Draws `start` to `stop`: `[draws c h w]` on the CPU, float32."""
        if start < self._drawn:
            self._generator, self._drawn = torch.Generator().manual_seed(self._seed), 0
        while self._drawn < start:
            self._draw()
        return torch.stack([self._draw() for _ in range(start, stop)])

    def _draw(self) -> Tensor:
        self._drawn += 1
        return torch.randn(*self._shape, generator=self._generator)
