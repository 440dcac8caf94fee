"""Where a computation runs: the only door to accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

__all__ = [
    "Accelerator",
    "MixedPrecision",
    "any_process",
    "as_first_process",
    "average_gradients",
    "create_accelerator",
    "gather_objects",
    "in_order",
    "mean_over_processes",
    "shared_out",
]

T = TypeVar("T")

MixedPrecision = Literal["no", "fp16", "bf16"]


def create_accelerator(
    mixed_precision: MixedPrecision = "no",
    gradient_accumulation_steps: int = 1,
    device: str | None = None,
    patience: float = 0.0,
) -> Accelerator:
    """One accelerator for a run.

    Args:
        mixed_precision: compute dtype under autocast; parameters keep theirs.
        gradient_accumulation_steps: micro steps to an optimiser step.
        device: "cpu" keeps off an accelerator that is there; None takes what is there.
        patience: seconds that one process may keep the others waiting, beyond an hour.
    """
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # of an earlier run in this process, whose precision may have been another
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation_steps,
        cpu=device == "cpu",
        # A head that leaves a stream unread leaves that stream's last adapters without gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(seconds=3600 + patience)),
        ],
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


def as_first_process(accelerator: Accelerator, value: int) -> int:
    """The first process's number, the same on each."""
    return value if accelerator.num_processes == 1 else int(broadcast_object_list([value])[0])


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its mean over all processes: one exchange, whatever forward passes led to it."""
    if accelerator.num_processes == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=accelerator.device)
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained]
    means = mean_over_processes(accelerator, torch.cat([present, *flat]))
    felt, *parts = torch.split(means, [len(trained), *(p.numel() for p in trained)])
    for parameter, part, is_felt in zip(trained, parts, felt.tolist(), strict=True):
        if is_felt:  # what no process used stays as it is: a gradient of 0 would let it decay
            parameter.grad = part.view_as(parameter).to(parameter.dtype)


def shared_out(accelerator: Accelerator, items: Sequence[T]) -> Sequence[T]:
    """The items that this process is to work on: every so many-th."""
    return items[accelerator.process_index :: accelerator.num_processes]


def gather_objects(accelerator: Accelerator, own: list[T]) -> list[T]:
    """What all processes have, one process after another, the same on each."""
    return own if accelerator.num_processes == 1 else list(gather_object(own))


def in_order(gathered: Sequence[T], count: int, num_processes: int) -> list[T]:
    """What `shared_out` had dealt and `gather_objects` brought together, as it was before."""
    dealt = [place for rank in range(num_processes) for place in range(rank, count, num_processes)]
    found: dict[int, T] = dict(zip(dealt, gathered, strict=True))
    return [found[place] for place in range(count)]
