"""Tensors of a device that knows no float64, as Apple's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dina_lrm.types import Reward


class Elsewhere(Tensor):
    """Values that must come to the CPU before they are made float64 or joined with what is there."""

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """The values, here."""
        return self.as_subclass(Tensor)

    def double(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """Not there."""
        raise TypeError("this device has no float64")


def answered_elsewhere(score: Any) -> Any:
    """`RewardModel.score` whose answer lies elsewhere."""

    def asked(**settings: Any) -> Reward:
        return score(**settings).map(lambda value: value.as_subclass(Elsewhere))

    return asked
