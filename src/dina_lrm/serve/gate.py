"""Who is inside, and whether anybody is still let in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from dina_lrm.errors import ValueRangeError
from dina_lrm.serve.errors import DrainingError, QueueFullError


class Gate:
    """Counts requests and the bytes that they hold; shut, it lets those inside finish.

    Attributes:
        draining: shut for new work.
        inside: requests that have no answer yet.
        held_bytes: of the bodies of those inside, and of what was made of them.
    """

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0
        self.held_bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self) -> None:
        """A request has arrived."""
        self.inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """A request was answered."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    def check(self) -> None:
        """Let work in, or not.

        Raises:
            DrainingError: shut.
        """
        if self.draining:
            raise DrainingError(
                "the server is being stopped: it finishes what it has accepted and accepts nothing more"
            )

    @contextmanager
    def hold(self, size: int, limit: int) -> Iterator[None]:
        """Hold so many bytes more for one of those inside.

        Args:
            size: bytes.
            limit: most that are held for all together.

        Yields:
            Nothing; they are given back at the end.

        Raises:
            ValueRangeError: more than are ever held.
            QueueFullError: more than the others leave.
        """
        if size > limit:
            raise ValueRangeError(f"the request's pictures take {size} bytes decoded, at most {limit} are held")
        if self.held_bytes + size > limit:
            raise QueueFullError(
                f"other requests hold {self.held_bytes} of {limit} bytes, which leaves no room for pictures that take "
                f"{size} decoded; ask again later"
            )
        self.held_bytes += size
        try:
            yield
        finally:
            self.held_bytes -= size

    async def drain(self, timeout: float) -> bool:
        """Shut, and wait until nobody is inside.

        Args:
            timeout: seconds after which those still inside are not waited for.

        Returns:
            Whether all have left.
        """
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
