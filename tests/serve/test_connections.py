"""Connections: headers in time and in bounds, and no endless body for an answer that was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from dina_lrm.serve.connections import MAX_HEADER_BYTES, connection_class
from tests.serve.fake import in_loop

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"


async def refuser(scope, receive, send) -> None:
    """Answers at once, whatever the body."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def waiter(scope, receive, send) -> None:
    """Answers when the body is there."""
    while (await receive()).get("more_body"):
        pass
    await refuser(scope, receive, send)


@asynccontextmanager
async def connected(app, timeout: float) -> AsyncIterator[Streams]:
    """A connection to a server whose headers have so much time."""
    config = uvicorn.Config(app, http=connection_class(timeout), ws="none", lifespan="off", port=0, log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.shutdown()


@in_loop
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with connected(waiter, 0.05) as (reader, _):
        assert await reader.read() == b""


@in_loop
async def test_a_header_that_never_ends_is_closed() -> None:
    async with connected(waiter, 0.05) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost")
        assert await reader.read() == b""


@in_loop
async def test_headers_beyond_bounds_are_refused() -> None:
    async with connected(waiter, 20) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n" + b"x: " + b"a" * MAX_HEADER_BYTES)
        assert b"400 Bad Request" in await reader.read()


@in_loop
async def test_a_body_is_not_on_this_clock() -> None:
    async with connected(waiter, 0.05) as (reader, writer):
        writer.write(HEAD)
        await asyncio.sleep(0.2)
        writer.write(b"a" * 1000)
        assert b"413" in await reader.readline()


@in_loop
async def test_a_body_that_goes_on_after_its_answer_is_cut_off() -> None:
    async with connected(refuser, 0.05) as (reader, writer):
        writer.write(HEAD)
        assert b"413" in await reader.readline()
        writer.write(b"a")  # and no more, ever
        assert (await reader.read()).endswith(b"no")


@in_loop
async def test_a_connection_serves_one_request_after_another() -> None:
    async with connected(waiter, 5) as (reader, writer):
        for _ in range(3):
            writer.write(HEAD + b"a" * 1000)
            assert b"413" in await reader.readline()
            assert await reader.readuntil(b"no")
