"""Calibration: the fitted map from utility to reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dina_lrm.errors import ValueRangeError


@dataclass(frozen=True)
class Calibration:
    """`reward = scale * utility + shift`, increasing, so an order never changes.

    The identity until one has been fitted; it replaces hand-set maps such as `(raw + 10) / 10`.

    Attributes:
        scale: above 0.
        shift: in reward units.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueRangeError(f"calibration scale must be above 0 so that the order stays, got {self.scale:g}")

    def __call__(self, utility: Tensor) -> Tensor:
        """Utility to reward, any shape."""
        return self.scale * utility + self.shift
