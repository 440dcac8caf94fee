"""Connections whose headers must arrive in time and in bounds: what uvicorn leaves open.

Without it, whoever sends a header a minute, or headers without end, holds a connection or memory for ever. The timer also
ends connections that go on sending a body nobody reads any more, after the request was refused.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["connection_class"]

MAX_HEADER_BYTES = 32 * 1024


def connection_class(header_timeout: float) -> type[HttpToolsProtocol]:
    """What uvicorn is to make for each connection.

    Args:
        header_timeout: seconds for the headers of a request, and for the rest of a body after its refusal.

    Returns:
        The class.
    """

    class Connection(HttpToolsProtocol):
        """A connection with a clock on everything that no route is waiting for."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._clock: asyncio.TimerHandle | None = None
            self._header_bytes = 0
            self._in_headers = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wind()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too large.")
            elif self._clock is None and self._waits_for_nobody() and not self.transport.is_closing():
                self._wind()

        def on_headers_complete(self) -> None:
            self._in_headers, self._header_bytes = False, 0
            self._stop()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_headers, self._header_bytes = True, 0
            self._stop()

        def _waits_for_nobody(self) -> bool:
            """Headers have begun, or a body goes on after its answer."""
            return self._header_bytes > 0 or (not self._in_headers and self.cycle.response_complete)

        def _wind(self) -> None:
            self._clock = self.loop.call_later(header_timeout, self._expire)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _expire(self) -> None:
            self._clock = None
            if not self.transport.is_closing():
                self.transport.close()

    return Connection
