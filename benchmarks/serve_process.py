"""A real server in a process of its own, on a model of random weights or a folder; and what may be done to it.

`python -m benchmarks.serve_process` is `dina_lrm.serve.run.serve`, the code behind `dina-lrm serve`, with one more way to load a
model, and with a signal that kills the thread that reads.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from dina_lrm.scoring import RewardModel

RANDOM = "random"
NAME = "served"
READY_SECONDS = 300


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: of it.
        host: that it listens at.
        port: the same.
    """

    process: subprocess.Popen[bytes]
    host: str
    port: int

    def kill_worker(self) -> None:
        """End the thread that reads states, as a bug in a library would."""
        self.process.send_signal(signal.SIGUSR1)

    def terminate(self) -> None:
        """As an operator does."""
        self.process.send_signal(signal.SIGTERM)

    def memory(self) -> int:
        """Bytes that are resident."""
        return resident(self.process.pid)


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(model: str, threads: int, log: Path, **settings: float) -> Iterator[Server]:
    """A server that is ready; it is ended with the block.

    Args:
        model: `RANDOM`, or a folder.
        threads: that torch has in it.
        log: file that its log goes to.
        settings: of `ServeSettings`.
    """
    words = [sys.executable, "-m", "benchmarks.serve_process", model, str(threads), json.dumps(settings)]
    with log.open("wb") as stream:
        process = subprocess.Popen(words, cwd=Path(__file__).parents[1], stderr=stream, stdout=subprocess.DEVNULL)
    try:
        port = _wait_for_port(process, log)
        yield Server(process, "127.0.0.1", port)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Where it listens, as its log says, once its model is loaded."""
    for _ in range(READY_SECONDS * 10):
        text = log.read_text(encoding="utf-8", errors="replace")
        address = re.search(r'"address": "http://127.0.0.1:(\d+)"', text)
        if address and '"event": "loaded"' in text:
            return int(address.group(1))
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not come up; its log ends: {log.read_text(encoding='utf-8')[-2000:]}")


def load(model: str) -> RewardModel:
    """The model that a server of that name has, here.

    Args:
        model: `RANDOM`, or a folder.
    """
    if model != RANDOM:
        return RewardModel.from_pretrained(model)
    from benchmarks.random_models import first_blocks, make_model, make_network
    from benchmarks.shapes import BASES

    medium = BASES["SD3.5 Medium"]
    width = {"num_attention_heads": 8, "caption_projection_dim": 512}
    base = first_blocks(replace(medium, network={**medium.network, **width}), (1,))
    return make_model(base, make_network(base))


def run(model: str, threads: int, settings: dict[str, float]) -> None:
    """Serve until a signal says otherwise."""
    from dina_lrm.serve.models import ModelSource
    from dina_lrm.serve.run import serve
    from dina_lrm.serve.settings import ServeSettings

    class Source(ModelSource):
        """A model as the benchmark names it."""

        def load(self) -> RewardModel:
            return load(self.path)

    torch.set_num_threads(threads)
    signal.signal(signal.SIGUSR1, _kill_worker)
    serve(ServeSettings(host="127.0.0.1", port=0, **settings), {NAME: Source(model)})


def _kill_worker(_: int, __: FrameType | None) -> None:
    worker = next(thread for thread in threading.enumerate() if thread.name == f"dina-lrm {NAME}")
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("settings", type=json.loads)
    given = parser.parse_args()
    run(given.model, given.threads, given.settings)
