"""Ordinary code waits for what runs in an event loop: one loop for a whole process, in a thread of its own.

So a call can be ended at its deadline wherever it stands, which a socket's own timeout, set anew for every read, cannot do.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from dina_lrm.errors import WorkError

T = TypeVar("T")
_starting = threading.Lock()


def wait(work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work; whoever interrupts the waiting cancels it.

    Args:
        work: not begun yet.

    Returns:
        Its result.

    Raises:
        WorkError: the interpreter is ending, and the loop's thread will never run again.
    """
    if sys.is_finalizing():
        work.close()
        raise WorkError("a server cannot be asked while the interpreter is ending; ask before, or in an atexit handler")
    with _starting:
        loop = _loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    finally:
        future.cancel()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="dina-lrm client", daemon=True).start()
    return loop


def _after_fork() -> None:
    """A child has the loop and not its thread."""
    global _starting
    _starting = threading.Lock()
    _loop.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
