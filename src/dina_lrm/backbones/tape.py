"""Reading a network while it runs: hooks that write what a module was given and gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Tape = dict[str, Tensor]
_running: ContextVar[Tape | None] = ContextVar("running", default=None)


@dataclass(frozen=True)
class Reading:
    """What to write down when a module ran.

    Attributes:
        module: of the network.
        write: from the module's keyword arguments and output to named tensors.
    """

    module: nn.Module
    write: Callable[[dict[str, Any], Any], Tape]


def output_as(name: str) -> Callable[[dict[str, Any], Any], Tape]:
    """The module's output, under a name."""
    return lambda kwargs, output: {name: output}


def streams_as(tap: int, image: int, text: int) -> Callable[[dict[str, Any], Any], Tape]:
    """Both streams of a block that returns a tuple, as `image.TAP` and `text.TAP`, by their places in it."""
    return lambda kwargs, output: {f"image.{tap}": output[image], f"text.{tap}": output[text]}


@contextmanager
def record(readings: Sequence[Reading]) -> Iterator[Tape]:
    """A tape that fills while the network runs inside; no hook stays behind, also after a failure.

    Threads may run one network at once: each writes on its own tape.
    """
    tape: Tape = {}

    def hook(reading: Reading) -> Any:
        def write(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if _running.get() is tape:
                tape.update(reading.write(kwargs, output))

        return write

    handles = [reading.module.register_forward_hook(hook(reading), with_kwargs=True) for reading in readings]
    token = _running.set(tape)
    try:
        yield tape
    finally:
        _running.reset(token)
        for handle in handles:
            handle.remove()
