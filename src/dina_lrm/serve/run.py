"""From settings to a server that listens, loads, answers, and ends when it is told to, without losing what it accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from dina_lrm.errors import DinaError, InputError, WorkError
from dina_lrm.scoring import RewardModel
from dina_lrm.serve.app import create_app
from dina_lrm.serve.arena import Arena
from dina_lrm.serve.connections import connection_class
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.logs import LOGGER, configure
from dina_lrm.serve.models import ModelPool, ModelSource
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings

__all__ = ["serve"]

KILLED = 128  # and the signal's number: how shells tell of a process that a signal ended

_log = logging.getLogger(LOGGER)


def serve(settings: ServeSettings, sources: Mapping[str, ModelSource], arena: Arena | None = None) -> None:
    """Listen at once, load the models, and answer until SIGTERM or SIGINT; what was accepted by then is finished.

    Args:
        settings: where to listen, limits, keys.
        sources: models by name; the first is the default.
        arena: where people vote; None for none.

    Raises:
        ConfigError: others could reach a server that asks nobody for a key.
        InputError: a model cannot be loaded, or the address cannot be listened at.
        WorkError: loading failed for another reason.
    """
    settings = settings.guarded()
    listener = _listen(settings)
    configure(settings.log_prompts)
    gate, pool = Gate(), _pool(settings)
    loading = _Loading(gate)
    device = next(iter(sources.values())).device
    loads = {name: loading.watched(name, source) for name, source in sources.items()}
    app = create_app(pool, settings, arena, sources=loads, device=device, gate=gate)
    server = _Server(_config(app, settings), gate, settings.drain_timeout)
    loading.on_failure = server.stop
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    _log.info("listening", extra={"facts": {"address": address, "models": list(sources)}})
    server.run(sockets=[listener])
    if loading.failure is not None:
        raise loading.failure
    if pool.is_loading:
        # Python's own end would wait for it, or abort in its midst.
        logging.shutdown()
        os._exit(0)


def _config(app: ASGIApp, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_class(settings.header_timeout, settings.max_connections),
        ws="none",
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody may write them, and an address that costs nothing would buy turns and room
        backlog=2048,
    )


def _pool(settings: ServeSettings) -> ModelPool:
    return ModelPool(
        Observer(),
        max_batch_size=settings.max_batch_size,
        max_wait_ms=settings.max_wait_ms,
        max_queue=settings.max_queue,
    )


def _listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens before anything is loaded, so that what cannot work fails at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        told = f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; take another --port"
        raise InputError(told) from error


class _Loading:
    """Notices when a model that was asked for at the start cannot be had.

    Attributes:
        failure: why.
        on_failure: what is then done.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.failure: DinaError | None = None
        self.on_failure: Callable[[], None] | None = None

    def watched(self, name: str, source: ModelSource) -> Callable[[], RewardModel]:
        """A way to load a model that does not fail unseen.

        Args:
            name: to serve it by.
            source: where it is.

        Returns:
            What the pool calls.
        """

        def load() -> RewardModel:
            try:
                model = source.load()
            except Exception as error:
                told = f"model {name!r} could not be loaded: {error}"
                if self.failure is None and not self._gate.draining:
                    self.failure = InputError(told) if isinstance(error, InputError) else WorkError(told)
                    if self.on_failure is not None:
                        self.on_failure()
                raise
            _log.info("loaded", extra={"facts": {"model": name, "path": source.path}})
            return model

        return load


class _Server(uvicorn.Server):
    """Goes on listening while it drains: whoever asks is told 503, and load balancers see it leave."""

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_timeout: float) -> None:
        super().__init__(config)
        self._gate, self._drain_timeout = gate, drain_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = False  # of a first signal, from when it came: the loop may be a while at something else

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop: signals come from outside it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains, a second one ends the process: votes are whole or not at all, and nothing else is written."""
        told, self._told = self._told, True
        if told and sig in (signal.SIGINT, signal.SIGTERM):
            # Not by Python's own end, which the model's thread would not survive; and no lock is waited for, of logs neither.
            os._exit(KILLED + sig)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self.stop()

    def stop(self) -> None:
        """End at the next tick."""
        self.should_exit = True

    def _begin(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        _log.info("draining", extra={"facts": {"requests": self._gate.inside}})
        done = await self._gate.drain(self._drain_timeout)
        _log.info("drained", extra={"facts": {"unanswered": 0 if done else self._gate.inside}})
        if not done:
            logging.shutdown()
            os._exit(KILLED + signal.SIGTERM)
        self.stop()
