"""The real app on a free port of this machine, in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from dina_lrm.scoring import RewardModel
from dina_lrm.serve.app import create_app
from dina_lrm.serve.arena import Arena
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings

PATIENCE = 30  # seconds


@contextmanager
def running(
    load: Callable[[], RewardModel],
    settings: ServeSettings | None = None,
    arena: Arena | None = None,
    name: str = "tiny",
) -> Iterator[str]:
    """A server, by its address; its model is loaded while it listens."""
    settings = settings or ServeSettings()
    pool = ModelPool(Observer(), max_queue=settings.max_queue)
    app = create_app(pool, settings, arena, sources={name: load})
    # Whoever connects before it is up waits in the socket's queue.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), name="server")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
