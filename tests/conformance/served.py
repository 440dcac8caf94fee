"""A real server in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.client import RewardClient
from dina_lrm.serve.app import create_app
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings

KEY = "a-key-for-the-tests"
NAME = "golden"
PATIENCE = 60


@contextmanager
def served(model: RewardModel, keys: tuple[str, ...] = (KEY,)) -> Iterator[str]:
    """Serve a model under `NAME` until the block ends.

    Args:
        model: to be served.
        keys: one of which is needed; none needs none.

    Yields:
        The server's url, once it answers.
    """
    app = create_app(
        ModelPool(Observer(), max_wait_ms=2.0), ServeSettings(api_keys=keys), sources={NAME: lambda: model}
    )
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with RewardClient(url) as client:
        until = time.monotonic() + PATIENCE
        while not client.ready():
            assert time.monotonic() < until and thread.is_alive()
            time.sleep(0.01)
    try:
        yield url
    finally:
        running.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()
