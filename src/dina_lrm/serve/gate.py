"""Who is inside, and whether anybody is still let in."""

from __future__ import annotations

import asyncio
from collections import Counter
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
        held_by: the same by client.
    """

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0
        self.held_bytes = 0
        self.held_by: Counter[str] = Counter()
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


class Holder:
    """One of those inside: what is held for it, on its client's account.

    Attributes:
        size: bytes.
    """

    def __init__(self, gate: Gate, client: str) -> None:
        self.size = 0
        self._gate, self._client = gate, client

    @property
    def client_size(self) -> int:
        """Bytes that are held for all requests of its client."""
        return self._gate.held_by[self._client]

    def take(self, size: int) -> None:
        """Hold so many bytes more; fewer, where they are less than nothing."""
        self.size += size
        self._gate.held_bytes += size
        self._gate.held_by[self._client] += size
        if not self.client_size:
            del self._gate.held_by[self._client]

    def exceeds(self, share: int, more: int = 0) -> bool:
        """Whether its client holds more than a share, with so many bytes more.

        A client's only request is bounded by limits of its own, however small the share.
        """
        return self.size < self.client_size and self.client_size + more > share

    @contextmanager
    def hold(self, size: int, limit: int, share: int) -> Iterator[None]:
        """Hold so many bytes of decoded pictures.

        Args:
            size: bytes.
            limit: most that are held for all together.
            share: most that are held for one client.

        Yields:
            Nothing; they are given back at the end.

        Raises:
            ValueRangeError: more than are ever held.
            QueueFullError: more than the others leave, or the client's other requests.
        """
        if size > limit:
            raise ValueRangeError(f"the request's pictures take {size} bytes decoded, at most {limit} are held")
        if self._gate.held_bytes + size > limit:
            raise QueueFullError(
                f"other requests hold {self._gate.held_bytes} of {limit} bytes, which leaves no room for pictures that "
                f"take {size} decoded; ask again later"
            )
        if self.exceeds(share, size):
            raise QueueFullError(
                f"this client's requests hold {self.client_size} bytes of the {share} that one client may, which leaves "
                f"no room for pictures that take {size} decoded; ask again when some are answered"
            )
        self.take(size)
        try:
            yield
        finally:
            self.take(-size)
