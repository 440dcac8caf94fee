"""Where a computation runs: the only door to accelerate."""

from __future__ import annotations

from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

__all__ = ["Accelerator", "MixedPrecision", "any_process", "create_accelerator", "mean_over_processes"]

MixedPrecision = Literal["no", "fp16", "bf16"]


def create_accelerator(
    mixed_precision: MixedPrecision = "no", gradient_accumulation_steps: int = 1, device: str | None = None
) -> Accelerator:
    """One accelerator for a run.

    Args:
        mixed_precision: compute dtype under autocast; parameters keep theirs.
        gradient_accumulation_steps: micro steps to an optimiser step.
        device: "cpu" keeps off an accelerator that is there; None takes what is there.
    """
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # of an earlier run in this process, whose precision may have been another
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        cpu=device == "cpu",
        # A head that leaves a stream unread leaves that stream's last adapters without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def mean_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same on each."""
    if accelerator.num_processes == 1:
        return value
    reduced = accelerator.reduce(value, reduction="mean")
    assert isinstance(reduced, Tensor)
    return reduced


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is set on any process, the same answer on each: nobody leaves a loop alone."""
    if accelerator.num_processes == 1:
        return flag
    return bool(mean_over_processes(accelerator, torch.tensor(float(flag), device=accelerator.device)) > 0)
