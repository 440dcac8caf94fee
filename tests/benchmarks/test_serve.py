"""Clients that measure a server: what they send, and what they make of what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks import serve, serve_load
from benchmarks.serve_load import Answer, Connection, Sample
from dina_lrm.scoring.wire import unpack
from dina_lrm.types import Conditioning

Respond = Callable[[int, bytes], Awaitable[tuple[int, dict[str, object] | None]]]
SAMPLES = [Sample(b"\0" * 1000, 1.5), Sample(b"\1" * 200_000, -2.0)]


class Host:
    """A server that says what it is told to.

    Attributes:
        heads: of requests.
        connections: how many were made.
    """

    def __init__(self, respond: Respond) -> None:
        self.heads: list[str] = []
        self.connections = 0
        self._respond = respond
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Host:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks)  # clients have hung up

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.append(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                status, reply = await self._respond(len(self.heads), await reader.readexactly(length))
                if reply is None:
                    break
                text = json.dumps(reply).encode()
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
        except (EOFError, OSError):
            pass
        finally:
            writer.close()


def score_of(body: bytes) -> dict[str, object]:
    return {"protocol_version": "1", "raw_scores": [next(s.score for s in SAMPLES if s.body == body)]}


def test_a_closed_loop_asks_again_on_the_same_connections() -> None:
    async def respond(number: int, body: bytes) -> tuple[int, dict[str, object]]:
        return 200, score_of(body)

    async def story() -> None:
        async with Host(respond) as host:
            answers, seconds = await serve_load.closed_loop("127.0.0.1", host.port, SAMPLES, clients=3, rounds=4)
        assert host.connections == 3 and len(answers) == 12 and seconds > 0
        assert all(a.status == 200 and a.score == SAMPLES[a.sample].score for a in answers)
        assert "POST /v1/score HTTP/1.1" in host.heads[0] and "x-drm-protocol-version: 1" in host.heads[0]
        assert {head.partition("x-client-id: ")[2].strip() for head in host.heads} == {f"closed-{i}" for i in range(3)}

    asyncio.run(story())


def test_refusals_and_broken_connections_are_answers_too() -> None:
    async def respond(number: int, body: bytes) -> tuple[int, dict[str, object] | None]:
        return (429, {"error": {}}) if number == 1 else (0, None)

    async def story() -> None:
        async with Host(respond) as host:
            connection = Connection("127.0.0.1", host.port, "a")
            refused, broken = [await connection.score(0, SAMPLES[0]) for _ in range(2)]
        assert refused.status == 429 and refused.score is None
        assert broken.status == 0 and "IncompleteRead" in broken.error

    asyncio.run(story())


def test_a_client_that_goes_home_when_refused_asks_no_more() -> None:
    async def respond(number: int, body: bytes) -> tuple[int, dict[str, object]]:
        return (200, score_of(body)) if number < 3 else (503, {"error": {}})

    async def story() -> list[int]:
        async with Host(respond) as host:
            answers, _ = await serve_load.closed_loop("127.0.0.1", host.port, SAMPLES, 1, 100, until_refused=True)
        return [answer.status for answer in answers]

    assert asyncio.run(story()) == [200, 200, 503]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def story() -> None:
        gate = asyncio.Event()

        async def respond(number: int, body: bytes) -> tuple[int, dict[str, object]]:
            if number == 10:
                gate.set()
            await gate.wait()  # nobody is answered before all have asked
            return 200, score_of(body)

        async with Host(respond) as host:
            answers = await serve_load.open_loop("127.0.0.1", host.port, SAMPLES, rate=200, seconds=0.05)
        assert len(answers) == 10 and host.connections == 10

    asyncio.run(story())


def test_half_a_body_is_the_end_of_a_connection() -> None:
    async def respond(number: int, body: bytes) -> tuple[int, dict[str, object]]:
        return 200, score_of(body)

    async def story() -> None:
        async with Host(respond) as host:
            connection = Connection("127.0.0.1", host.port, "rude")
            await connection.send_half(SAMPLES[1])
            assert (await connection.score(1, SAMPLES[1])).score == -2.0
            await connection.close()
        assert host.connections == 2

    asyncio.run(story())


def test_samples_are_requests_of_protocol_1_with_the_local_score() -> None:
    asked = []

    def score(**how: object) -> SimpleNamespace:
        asked.append(how)
        return SimpleNamespace(utility=torch.tensor([float(len(asked))]))

    conditioning = Conditioning(torch.zeros(4, 3, 5), torch.zeros(4, 6))
    bench = serve.Bench.of("m", "path", SimpleNamespace(score=score), torch.zeros(4, 16, 2, 2), conditioning)
    body = unpack(bytearray(bench.samples[2].body)).tensors
    assert {name: list(tensor.shape) for name, tensor in body.items()} == {
        "latents": [1, 16, 2, 2],
        "prompt_embeds": [1, 3, 5],
        "pooled_prompt_embeds": [1, 6],
        "u": [1],
        "seeds": [1],
    }
    assert asked[2]["sigmas"] == pytest.approx((0.5,)) and asked[2]["seed"] == 2 and body["seeds"].tolist() == [2]
    answers = [Answer(i, 0.0, 0.0, 200, score) for i, score in enumerate((1.0, 2.5, 3.0))] + [Answer(3, 0.0, 0.0, 429)]
    assert bench.difference(answers) == 0.5
    assert bench.local_rate() > 0


@pytest.mark.parametrize(
    ("measure", "what"),
    [
        (lambda bench, server: serve._closed(bench, server, 2, 1), "2 clients"),
        (lambda b, s: serve._lone(b, s, 2), "a lone"),
    ],
)
def test_a_load_whose_requests_failed_is_no_row(monkeypatch: pytest.MonkeyPatch, measure, what: str) -> None:
    answers = [Answer(0, 0.0, 0.0, 429), Answer(1, 0.0, 0.0, 0, error="EOFError: gone"), Answer(1, 0.0, 0.1, 200, 1.0)]
    counts = {f"{name}_{kind}": 0.0 for name in ("service_seconds", "queue_seconds") for kind in ("sum", "count")}
    monkeypatch.setattr(serve, "_load", lambda *_: (answers, 1.0))
    monkeypatch.setattr(serve, "_counts", lambda server: counts)
    bench = SimpleNamespace(local_rate=lambda: 1.0, difference=lambda answers: 0.0)
    with pytest.raises(RuntimeError, match=what) as failure:
        measure(bench, None)
    assert "2 of 3 requests failed: 1 x HTTP 429; 1 x EOFError: gone" in str(failure.value)
