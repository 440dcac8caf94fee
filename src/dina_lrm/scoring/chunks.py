"""Many states through a network that holds few: chunks, and smaller ones when memory ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dina_lrm.errors import WorkError

T = TypeVar("T")


def in_chunks(
    count: int, size: int, read: Callable[[slice], T], join: Callable[[Sequence[T]], T], once: bool = False
) -> T:
    """Read `count` items, at most `size` at once; out of memory halves the size and goes on with what is not yet read.

    Nothing is tried again where a gradient is kept, for the graph of what was read keeps its memory, nor where processes hold the
    network together and must run it equally often.

    Args:
        count: of items.
        size: of the first chunk.
        read: of a slice of the items to what is known of them.
        join: of the chunks' findings.
        once: out of memory is raised.

    Returns:
        What is known of all items, in order.

    Raises:
        WorkError: a single item does not fit.
    """
    parts: list[T] = []
    start = 0
    while start < count:
        try:
            parts.append(read(slice(start, min(start + size, count))))
        except RuntimeError as error:
            if not _is_out_of_memory(error) or once:
                raise
            if size == 1:
                raise WorkError(
                    f"one state does not fit into memory ({str(error).splitlines()[0]}); use smaller latents, a smaller "
                    "dtype or another device"
                ) from error
            smaller = max(1, min(size, count - start) // 2)
            told = f"out of memory with {min(size, count - start)} states in one forward; going on with {smaller}"
        else:
            start += size
            continue
        # Outside the handler: the error's traceback holds what the failed forward had allocated.
        warnings.warn(told, RuntimeWarning, stacklevel=2)
        size = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return join(parts)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
