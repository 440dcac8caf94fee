"""Connections whose headers must arrive in time and in bounds, and so many of them: what uvicorn leaves open.

Without it, whoever sends a header a minute, or headers without end, holds a connection or memory for ever. The timer also
ends connections that go on sending a body nobody reads any more, after the request was refused.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dina_lrm.serve.refusals import Refusal

__all__ = ["connection_class"]

MAX_HEADER_BYTES = 32 * 1024


async def too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers where there are as many connections as are taken; in our words, which uvicorn's own limit has not."""
    told = "the server has as many connections as it takes; ask again in a few seconds"
    refusal = Refusal(503, "busy", told, {"retry-after": "1", "connection": "close"})
    await refusal.response()(scope, receive, send)


def connection_class(header_timeout: float, max_connections: int) -> type[HttpToolsProtocol]:
    """What uvicorn is to make for each connection.

    Args:
        header_timeout: seconds for the headers of a request, and for the rest of a body after its refusal.
        max_connections: beyond it requests are refused.

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
            if len(self.connections) > max_connections:
                self.app = too_many
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
            else:
                self._wind_if_waited_for()

        def on_headers_complete(self) -> None:
            self._in_headers, self._header_bytes = False, 0
            self._stop()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_headers, self._header_bytes = True, 0
            self._stop()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wind_if_waited_for()

        def _wind_if_waited_for(self) -> None:
            """Headers have begun, or a body goes on after its answer; but while an answer is owed, the client is who waits."""
            cycle: RequestResponseCycle | None = self.cycle  # of the last request whose headers came
            owed = cycle is not None and not cycle.response_complete
            late = self._header_bytes > 0 or not self._in_headers
            if late and not owed and self._clock is None and not self.transport.is_closing():
                self._wind()

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
