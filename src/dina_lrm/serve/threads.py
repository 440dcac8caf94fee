"""Threads of ours: how many cores torch takes in one, and work that the process does not wait for at its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["left_behind", "use_torch_threads"]

T = TypeVar("T")


def use_torch_threads(count: int) -> None:
    """Let torch's work in the calling thread run on so many cores, whatever other threads do.

    A thread's own number is made at its first use, from what any thread set last, and would overwrite one set before:
    so it is used first.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def left_behind(function: Callable[[], T], name: str) -> tuple[threading.Thread, asyncio.Future[T]]:
    """Do something in a thread that nobody has to wait for: not the loop, and not the process when it ends.

    Args:
        function: what takes minutes.
        name: of the thread.

    Returns:
        The thread, and the future of its result in the running loop.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    # Both are emptied as soon as can be: a thread that is about to end must not keep a model alive.
    todo: list[Callable[[], T]] = [function]
    outcome: list[T | BaseException] = []
    del function

    def tell(settle: Callable[[Any], None]) -> None:
        if not future.done():
            settle(outcome.pop())

    def run() -> None:
        settle: Callable[[Any], None] = future.set_result
        try:
            outcome.append(todo.pop()())
        except BaseException as error:
            settle = future.set_exception
            outcome.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, settle)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread, future
