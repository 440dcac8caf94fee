"""Exponential moving average of trainable parameters, held in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dina_lrm.errors import CheckpointError, ValueRangeError

__all__ = ["Ema", "warmed_decay"]


def warmed_decay(decay: float, num_updates: int) -> float:
    """`min(decay, (1 + n) / (10 + n))`: early averages forget the initial weights fast.

    Args:
        decay: the decay that is reached in the end.
        num_updates: updates made before this one, n.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class Ema:
    """`average <- decay average + (1 - decay) parameter`, after each optimiser step.

    The averages are float32 whatever the parameters are: at decay 0.995 a bfloat16 average does not move at all.

    Attributes:
        decay: the decay after warm-up.
        num_updates: updates so far.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.995) -> None:
        """Start from the present values.

        Args:
            parameters: what is averaged, by name; the mapping's tensors are read again at each update.
            decay: in [0, 1).

        Raises:
            ValueRangeError: decay outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueRangeError(f"ema decay must be in [0, 1), got {decay:g}")
        self.decay = decay
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Take one step towards the present values.

        Args:
            decay: of this step; None takes the warmed one.
        """
        averages = list(self._averages.values())
        if averages:
            values = [p.detach().float() for p in self._parameters.values()]
            decay = warmed_decay(self.decay, self.num_updates) if decay is None else decay
            torch._foreach_lerp_(averages, values, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averages (in their own dtype); afterwards exactly what they held before."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    def copy_to_parameters(self) -> None:
        """Leave the averages in the parameters for good."""
        self._write(self._averages)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and how many updates made them."""
        return {**self._averages, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: a name is missing or unknown, or a shape differs.
        """
        expected = {*self._averages, "num_updates"}
        if set(state) != expected:
            odd = sorted(expected.symmetric_difference(state))
            raise CheckpointError(f"the saved averages do not fit this model: {odd[0]} is on one side only")
        for name, average in self._averages.items():
            if state[name].shape != average.shape:
                raise CheckpointError(
                    f"saved average {name} must be {list(average.shape)}, got {list(state[name].shape)}"
                )
        for name, average in self._averages.items():
            average.copy_(state[name])
        self.num_updates = int(state["num_updates"])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
