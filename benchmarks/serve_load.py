"""Clients of protocol version 1 over plain sockets, and loads made of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dina_lrm.scoring.wire import BLOB_TYPE, PROTOCOL_HEADER, PROTOCOL_VERSION

READ_SECONDS = 600


@dataclass(frozen=True)
class Sample:
    """A request, and what a local model says to it.

    Attributes:
        body: the blob.
        score: the local utility.
    """

    body: bytes
    score: float


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        sample: place of what was asked among the samples.
        started: when it was sent, on the loop's clock.
        seconds: until the head of the answer was there.
        status: of HTTP; 0 if there was no answer.
        score: as served; None where none was.
        error: why there was no answer.
    """

    sample: int
    started: float
    seconds: float
    status: int
    score: float | None = None
    error: str | None = None


class Connection:
    """One client on one connection, which is kept alive."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self._address, self._name = (host, port), name
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def score(self, place: int, sample: Sample) -> Answer:
        """Ask for one score; a failure is an answer as well."""
        started = time.monotonic()
        try:
            status, body, seconds = await self._post(sample.body, started)
        except (OSError, EOFError, ValueError) as error:
            await self.close()
            return Answer(place, started, time.monotonic() - started, 0, error=f"{type(error).__name__}: {error}")
        score = json.loads(body)["raw_scores"][0] if status == 200 else None
        return Answer(place, started, seconds, status, score)

    async def send_half(self, sample: Sample) -> None:
        """Begin a request and hang up in the middle of its body."""
        _, writer = await self._open()
        writer.write(self._head(sample.body) + sample.body[: len(sample.body) // 2])
        await writer.drain()
        writer.transport.abort()
        self._reader = self._writer = None

    async def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self._reader, self._writer

    def _head(self, body: bytes) -> bytes:
        lines = (
            "POST /v1/score HTTP/1.1",
            f"host: {self._address[0]}",
            f"content-type: {BLOB_TYPE}",
            f"content-length: {len(body)}",
            f"{PROTOCOL_HEADER}: {PROTOCOL_VERSION}",
            f"x-client-id: {self._name}",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _post(self, body: bytes, started: float) -> tuple[int, bytes, float]:
        reader, writer = await self._open()
        writer.write(self._head(body))
        writer.write(body)
        async with asyncio.timeout(READ_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            seconds = time.monotonic() - started
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            reply = await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            await self.close()
        return int(head.split()[1]), reply, seconds


async def get(host: str, port: int, path: str) -> str:
    """The body of a page."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text.partition("\r\n\r\n")[2]


async def closed_loop(
    host: str, port: int, samples: Sequence[Sample], clients: int, rounds: int, until_refused: bool = False
) -> tuple[list[Answer], float]:
    """Clients that each ask, wait for the answer, and ask again.

    Args:
        host: of the server.
        port: the same.
        samples: client i begins with the i-th.
        clients: that ask at once.
        rounds: requests of each.
        until_refused: a client goes home at its first answer that is none.

    Returns:
        All answers, and the seconds that it took.
    """

    async def client(number: int) -> list[Answer]:
        connection = Connection(host, port, f"closed-{number}")
        found = []
        for turn in range(rounds):
            place = (number + turn * clients) % len(samples)
            found.append(await connection.score(place, samples[place]))
            if until_refused and found[-1].status != 200:
                break
        await connection.close()
        return found

    started = time.monotonic()
    found = await asyncio.gather(*(client(number) for number in range(clients)))
    return [answer for answers in found for answer in answers], time.monotonic() - started


async def open_loop(host: str, port: int, samples: Sequence[Sample], rate: float, seconds: float) -> list[Answer]:
    """Requests at a fixed rate, whether or not earlier ones were answered, each on a connection that is free.

    Args:
        host: of the server.
        port: the same.
        samples: asked one after another.
        rate: requests a second.
        seconds: for so long.

    Returns:
        All answers.
    """
    idle: list[Connection] = []
    tasks: list[asyncio.Task[Answer]] = []

    async def ask(number: int) -> Answer:
        connection = idle.pop() if idle else Connection(host, port, f"open-{number}")
        place = number % len(samples)
        answer = await connection.score(place, samples[place])
        idle.append(connection)
        return answer

    started = time.monotonic()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(ask(number)))
    found = await asyncio.gather(*tasks)
    for connection in idle:
        await connection.close()
    return list(found)
