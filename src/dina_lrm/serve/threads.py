"""How many cores torch takes in a thread of ours."""

from __future__ import annotations

import torch

__all__ = ["use_torch_threads"]


def use_torch_threads(count: int) -> None:
    """Let torch's work in the calling thread run on so many cores, whatever other threads do.

    A thread's own number is made at its first use, from what any thread set last, and would overwrite one set before:
    so it is used first.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)
