"""Connections: headers in time and in bounds, no endless body for an answer that was given, and only so many of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from dina_lrm.serve.connections import MAX_HEADER_BYTES, connection_class
from tests.serve.fake import by_clockwork

TIMEOUT = 10.0  # seconds for headers, by the clock of the test
HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
WHOLE = HEAD + b"a" * 1000


async def refuser(scope, receive, send) -> None:
    """Answers at once, whatever the body."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def waiter(scope, receive, send) -> None:
    """Answers when the body is there."""
    while (await receive()).get("more_body"):
        pass
    await refuser(scope, receive, send)


async def thinker(scope, receive, send) -> None:
    """Answers long after the body was there."""
    await asyncio.sleep(3 * TIMEOUT)
    await waiter(scope, receive, send)


class Line(asyncio.Transport):
    """What a connection writes to.

    Attributes:
        written: so far.
        closed_at: by the loop's clock; None while it is open.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed_at: float | None = None

    def write(self, data: Any) -> None:
        if self.closed_at is None:
            self.written += bytes(data)

    def close(self) -> None:
        if self.closed_at is None:
            self.closed_at = now()

    def is_closing(self) -> bool:
        return self.closed_at is not None

    def pause_reading(self) -> None:
        """Nothing is read here."""

    resume_reading = pause_reading

    @property
    def answers(self) -> int:
        return self.written.count(b"HTTP/1.1 413")


class Server:
    """Connections of one server, on an app."""

    def __init__(self, app: Any, max_connections: int = 100) -> None:
        made = connection_class(TIMEOUT, max_connections)
        # Nobody is kept alive for less than headers may take, so that it is our clock that closes.
        self._config = uvicorn.Config(
            app, http=made, ws="none", lifespan="off", log_config=None, timeout_keep_alive=900
        )
        self._config.load()
        self._made, self._state = made, ServerState()

    def connect(self) -> tuple[Line, Any]:
        """The server's end of a connection, and whoever reads from it."""
        line, connection = Line(), self._made(self._config, self._state, {})
        connection.connection_made(line)
        return line, connection


def now() -> float:
    return asyncio.get_running_loop().time()


@by_clockwork
async def test_a_connection_that_says_nothing_is_closed() -> None:
    line, _ = Server(waiter).connect()
    await asyncio.sleep(2 * TIMEOUT)
    assert (line.closed_at, line.written) == (TIMEOUT, b"")


@by_clockwork
async def test_a_header_that_never_ends_is_closed() -> None:
    line, connection = Server(waiter).connect()
    for byte in HEAD:
        connection.data_received(bytes([byte]))
        await asyncio.sleep(1)
        if line.closed_at is not None:
            break
    assert (line.closed_at, line.written) == (TIMEOUT, b"")


@by_clockwork
async def test_headers_beyond_bounds_are_refused() -> None:
    line, connection = Server(waiter).connect()
    connection.data_received(b"POST / HTTP/1.1\r\n" + b"x: " + b"a" * MAX_HEADER_BYTES)
    assert b"400 Bad Request" in line.written and line.is_closing()


@by_clockwork
async def test_a_body_is_not_on_this_clock() -> None:
    line, connection = Server(waiter).connect()
    connection.data_received(HEAD)
    await asyncio.sleep(3 * TIMEOUT)
    connection.data_received(b"a" * 1000)
    await asyncio.sleep(1)
    assert line.answers == 1 and not line.is_closing()


@by_clockwork
async def test_a_body_that_goes_on_after_its_answer_is_cut_off() -> None:
    line, connection = Server(refuser).connect()
    connection.data_received(HEAD)
    for _ in range(20):
        await asyncio.sleep(1)
        if not line.is_closing():
            connection.data_received(b"a")  # and never the last of them
    assert line.answers == 1 and line.written.endswith(b"no") and line.closed_at == TIMEOUT


@by_clockwork
async def test_a_connection_serves_one_request_after_another() -> None:
    line, connection = Server(waiter).connect()
    for count in (1, 2, 3):
        connection.data_received(WHOLE)
        await asyncio.sleep(1)
        assert line.answers == count
    await asyncio.sleep(9 * TIMEOUT)
    assert not line.is_closing()


@by_clockwork
async def test_bytes_behind_a_body_cut_off_no_answer_that_is_owed() -> None:
    for more in (b"\r\n", WHOLE[:20]):
        line, connection = Server(thinker).connect()
        connection.data_received(WHOLE)
        connection.data_received(more)
        await asyncio.sleep(4 * TIMEOUT - 1)
        assert line.answers == 1 and not line.is_closing()


@by_clockwork
async def test_the_clock_of_headers_behind_a_body_starts_with_the_answer() -> None:
    line, connection = Server(thinker).connect()
    connection.data_received(WHOLE)
    connection.data_received(WHOLE[:20])
    await asyncio.sleep(5 * TIMEOUT)
    assert line.answers == 1 and line.closed_at == 4 * TIMEOUT


@by_clockwork
async def test_requests_sent_ahead_are_all_answered() -> None:
    line, connection = Server(thinker).connect()
    connection.data_received(3 * WHOLE + WHOLE[:20])
    connection.data_received(WHOLE[20:40])
    await asyncio.sleep(9 * TIMEOUT + 1)
    assert line.answers == 3 and not line.is_closing()
    connection.data_received(WHOLE[40:])
    await asyncio.sleep(4 * TIMEOUT)
    assert line.answers == 4


@by_clockwork
async def test_more_connections_than_are_taken_are_refused_in_our_words() -> None:
    server = Server(waiter, max_connections=2)
    lines = [server.connect() for _ in range(3)]
    for _, connection in lines:
        connection.data_received(WHOLE)
    await asyncio.sleep(1)
    assert [line.answers for line, _ in lines] == [1, 1, 0]
    head, _, body = lines[2][0].written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head and b"application/json" in head
    assert json.loads(body)["error"]["kind"] == "busy" and lines[2][0].is_closing()
    for _, connection in lines[1:]:
        connection.connection_lost(None)
    line, connection = server.connect()
    connection.data_received(WHOLE)
    await asyncio.sleep(1)
    assert line.answers == 1
