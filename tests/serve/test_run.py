"""A real server: it listens at once, answers, finishes what it has accepted, and is not held up by those who dawdle."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch
import uvicorn

from dina_lrm.scoring.wire import pack
from dina_lrm.serve import run
from dina_lrm.serve.app import create_app
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings
from dina_lrm.types import Conditioning
from tests.serve.fake import in_loop, settle
from tests.serve.serving import tensors

PATIENCE = 90
COMMAND = (sys.executable, "-c", "from dina_lrm.cli.main import main; main()", "serve")
HEADERS = {"content-type": "application/octet-stream", "x-drm-protocol-version": "1"}


class Server:
    """`dina-lrm serve` in a process of its own.

    Attributes:
        url: where it listens.
        lines: what it wrote on stderr so far, as JSON.
    """

    def __init__(self, golden: Path, *options: str) -> None:
        command = [*COMMAND, "--model", f"tiny={golden / 'reward'}"]
        command += ["--base-model-path", str(golden / "pipeline"), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict] = []
        self.listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self.listening.wait(PATIENCE):
            self.end()
            raise AssertionError(self.lines)
        self.url: str = next(line["address"] for line in self.lines if line["event"] == "listening")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == "listening":
                self.listening.set()

    def until_ready(self) -> set[str]:
        """Every status that was told on the way."""
        told, end = set(), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            response = httpx2.get(f"{self.url}/healthz")
            told.add(response.json()["status"])
            if response.status_code == 200:
                return told
            assert response.status_code == 503
            time.sleep(0.05)
        raise AssertionError(self.lines)

    def end(self) -> None:
        """Whatever it is at."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def server(golden: Path) -> Iterator[Server]:
    server = Server(golden, "--max-wait-ms", "300", "--max-batch-size", "64")
    yield server
    server.end()


@pytest.mark.slow
def test_a_server_from_start_to_end(server: Server, golden_model, cases) -> None:
    told = server.until_ready()
    assert told == {"loading", "ready"}
    blob = pack(tensors(cases, seeds=torch.tensor([7])))
    given = Conditioning(cases["text.128.prompt_embeds"][:1], cases["text.128.pooled"][:1])
    with torch.no_grad():
        wanted = float(golden_model.score(conditioning=given, latents=cases["0.latents"][:1], seed=7).utility)

    def score() -> httpx2.Response:
        return httpx2.post(f"{server.url}/v1/score", content=blob, headers=HEADERS, timeout=PATIENCE)

    assert score().json()["raw_scores"] == pytest.approx([wanted], abs=1e-5)
    check_dawdlers(server.url)
    # Twelve requests wait for company when the signal comes: all of them are answered, and rightly.
    with httpx2.Client(base_url=server.url) as held, ThreadPoolExecutor(12) as pool:
        assert held.get("/healthz").status_code == 200
        before = states_accepted(server.url)
        asked = [pool.submit(score) for _ in range(12)]
        while states_accepted(server.url) < before + 12:
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert all(answer.json()["raw_scores"] == pytest.approx([wanted], abs=1e-5) for answer in answers)
    assert server.process.wait(PATIENCE) == 0
    events = [line["event"] for line in server.lines]
    assert events.index("draining") < events.index("drained")
    assert next(line for line in server.lines if line["event"] == "drained")["unanswered"] == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{server.url}/healthz")


def states_accepted(url: str) -> int:
    text = httpx2.get(f"{url}/metrics").text
    return int(float(re.findall(r"^dina_lrm_accepted_states\S* (\S+)$", text, re.MULTILINE)[0]))


def check_dawdlers(url: str) -> None:
    """Headers without end are refused, and a connection that says nothing is open while others are answered."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as endless:
        endless.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n")
        answered = b""
        try:
            for _ in range(100):
                endless.sendall(b"x-filler: " + b"a" * 1000 + b"\r\n")
            answered = endless.recv(1000)
        except OSError:
            answered = b"400"
        assert b"400" in answered
        assert httpx2.get(f"{url}/healthz").status_code == 200
        silent.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"200" in silent.recv(1000).split(b"\r\n")[0]


@pytest.mark.slow
def test_a_server_that_is_still_loading_leaves_at_once(golden: Path) -> None:
    server = Server(golden, "--log-prompts")
    try:
        assert httpx2.get(f"{server.url}/healthz").json() == {"status": "loading"}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert "loaded" not in [line["event"] for line in server.lines]
    finally:
        server.end()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server(golden: Path) -> None:
    command = [*COMMAND, "--model", str(golden / "pipeline"), "--port", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 2
    assert "could not be loaded" in ran.stderr.splitlines()[-1]


class Killed(BaseException):
    """What stands for the end of the process."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses that the process ended with."""
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise Killed

    monkeypatch.setattr(run.os, "_exit", end)
    monkeypatch.setattr(run.logging, "shutdown", lambda: None)
    return statuses


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_second_signal_ends_the_process_at_once_and_its_status_says_so(ended: list[int], sig: int) -> None:
    gate = Gate()
    server = run._Server(uvicorn.Config(lambda: None, log_config=None), gate, PATIENCE)
    server._loop = asyncio.get_running_loop()
    gate.enter()
    server.handle_exit(signal.SIGTERM, None)
    assert not ended and not server.should_exit
    with pytest.raises(Killed):  # though the loop has not come to the first
        server.handle_exit(sig, None)
    assert ended == [128 + sig]
    await settle(lambda: gate.draining)
    gate.leave()
    await server._draining
    assert server.should_exit and len(ended) == 1


@in_loop
async def test_a_client_s_address_is_that_of_its_connection_whatever_it_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, pool, gate = listener.getsockname()[1], ModelPool(Observer()), Gate()
        settings, clients = ServeSettings(no_auth=True), []

        async def told(scope, receive, send) -> None:
            clients.append(scope.get("client"))
            await app(scope, receive, send)

        app = create_app(pool, settings, gate=gate)
        server = uvicorn.Server(run._config(told, settings))
        running = asyncio.create_task(server.serve([listener]))
        await settle(lambda: server.started)
        async with httpx2.AsyncClient() as client:
            headers = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "https"}
            await client.get(f"http://127.0.0.1:{port}/healthz", headers=headers)
        server.should_exit = True
        await running
    assert [client[0] for client in clients if client is not None] == ["127.0.0.1"]


@in_loop
async def test_what_is_not_answered_in_time_shows_in_the_status(ended: list[int]) -> None:
    gate = Gate()
    gate.enter()
    with pytest.raises(Killed):
        await run._Server(uvicorn.Config(lambda: None, log_config=None), gate, 0.0)._drain()
    assert ended == [143]
