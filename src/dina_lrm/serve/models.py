"""Several models by name: one is the default, others come and go while it serves."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from dina_lrm.scoring import RewardModel
from dina_lrm.serve.engine import Engine
from dina_lrm.serve.errors import DrainingError, LoadingError, NameTakenError, UnknownModelError, WorkerError
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.threads import left_behind

Status: TypeAlias = Literal["loading", "ready", "draining", "failed"]
LOADING_SECONDS = 5.0  # after which asking again for a model that is being loaded makes sense
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and how it is to be loaded.

    Attributes:
        path: model folder or hub id.
        base: diffusers pipeline folder or hub id; None takes the one that the model names.
        revision: of the model's hub repository.
        dtype: of the base's weights, a key of `DTYPES`.
        device: where to put it.
    """

    path: str
    base: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def load(self) -> RewardModel:
        """The model; raises what `RewardModel.from_pretrained` does."""
        model = RewardModel.from_pretrained(
            self.path, base=self.base, device=self.device, dtype=DTYPES[self.dtype], revision=self.revision
        )
        _ = model.fingerprint  # of gigabytes, perhaps: taken here, where nobody waits for answers
        return model


@dataclass
class Entry:
    """A model of the pool.

    Attributes:
        name: that requests name it by.
        engine: who answers; None while it is loaded, or if that failed.
        failure: why there is no engine.
        leaving: what ends when it is unloaded; None while it stays.
    """

    name: str
    engine: Engine | None = None
    failure: str | None = None
    leaving: asyncio.Task[None] | None = None

    @property
    def status(self) -> Status:
        """What may be asked of it: only one that is ready answers."""
        if self.engine is not None:
            return self.engine.status
        return "failed" if self.failure is not None else "loading"


class ModelPool:
    """Engines by name; the first of them is the default. All methods are called from one event loop.

    Attributes:
        observer: what all engines count in.
    """

    def __init__(
        self, observer: Observer, *, max_batch_size: int = 8, max_wait_ms: float = 10.0, max_queue: int = 512
    ) -> None:
        self.observer = observer
        self._max_batch_size, self._max_wait_ms, self._max_queue = max_batch_size, max_wait_ms, max_queue
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: list[threading.Thread] = []
        self._draining = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models, the default first."""
        return tuple(self._entries.values())

    @property
    def status(self) -> Status:
        """Of the whole: ready as soon as the default is, and as long as no worker is beyond help.

        A model that could not be loaded is no engine, so it leaves the others ready.
        """
        if self._draining:
            return "draining"
        engines = [entry.engine for entry in self.entries if entry.engine is not None]
        if any(engine.status == "failed" for engine in engines):
            return "failed"
        return self._default.status if self._entries else "loading"

    @property
    def is_loading(self) -> bool:
        """Whether something is still being loaded, though the pool be closed."""
        return any(thread.is_alive() for thread in self._threads)

    def engine(self, name: str | None = None) -> Engine:
        """Who answers for a model.

        Args:
            name: of the model; None takes the default.

        Raises:
            UnknownModelError: there is no such model.
            LoadingError: it is being loaded.
            WorkerError: it could not be loaded.
        """
        entry = self._entry(name)
        if entry.engine is not None:
            return entry.engine
        if entry.failure is not None:
            raise WorkerError(f"model {entry.name!r} could not be loaded: {entry.failure}")
        raise LoadingError(f"model {entry.name!r} is being loaded; ask again in a few seconds", LOADING_SECONDS)

    def add(self, name: str, model: RewardModel) -> Engine:
        """Serve a loaded model.

        Raises:
            NameTakenError: the name is in use.
        """
        entry = self._new(name)
        entry.engine = self._start(name, model)
        return entry.engine

    def load(self, name: str, load: Callable[[], RewardModel]) -> asyncio.Task[None]:
        """Load a model in a thread of its own while others serve; who closes the pool does not wait for it.

        Args:
            name: to serve it by; taken from now on.
            load: gives the model, such as `ModelSource.load`.

        Returns:
            What ends when the model is ready or its entry says why it is not; nobody needs to await it.

        Raises:
            NameTakenError: the name is in use.
            DrainingError: the server is being stopped.
        """
        if self._draining:
            raise DrainingError("the server is being stopped and loads nothing more")
        entry = self._new(name)
        thread, model = left_behind(load, f"dina-lrm load {name}")
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        task = asyncio.create_task(self._fill(entry, model), name=f"load {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def unload(self, name: str) -> None:
        """Let a model finish what it has accepted, and forget it; the next one becomes the default if it was that.

        Whoever asks again waits for the same, and it goes on when they wait no more.

        Raises:
            UnknownModelError: there is no such model.
            LoadingError: it is being loaded.
        """
        entry = self._entry(name)
        if entry.status == "loading":
            raise LoadingError(f"model {name!r} is being loaded; unload it when it is ready", LOADING_SECONDS)
        if entry.leaving is None:
            entry.leaving = asyncio.create_task(self._let_go(entry), name=f"unload {name}")
            self._tasks.add(entry.leaving)
            entry.leaving.add_done_callback(self._tasks.discard)
        await asyncio.shield(entry.leaving)

    async def _let_go(self, entry: Entry) -> None:
        if entry.engine is not None:
            await entry.engine.drain()
            _, closed = left_behind(entry.engine.close, f"dina-lrm unload {entry.name}")
            await closed
        entry.engine = None
        if self._entries.get(entry.name) is entry:
            del self._entries[entry.name]
        _tidy()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    async def drain(self) -> None:
        """Accept nothing more, and wait until all that was accepted is answered."""
        self._draining = True
        await asyncio.gather(*(entry.engine.drain() for entry in self.entries if entry.engine is not None))

    async def close(self) -> None:
        """Stop all engines after the batches that are being read; what is open fails."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        engines = [entry.engine for entry in self.entries if entry.engine is not None]
        self._entries.clear()
        await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in engines))

    def _entry(self, name: str | None) -> Entry:
        if name is None and self._entries:
            return self._default
        if name is None or name not in self._entries:
            told = ", ".join(self._entries) or "none"
            raise UnknownModelError(f"there is no model {name!r:.80}; served are: {told}")
        return self._entries[name]

    @property
    def _default(self) -> Entry:
        return min(self.entries, key=lambda entry: entry.leaving is not None)  # the first that stays

    def _new(self, name: str) -> Entry:
        taken = self._entries.get(name)
        if taken is not None and taken.failure is None:
            raise NameTakenError(f"there is a model {name!r:.80} already; unload it first, or take another name")
        self._entries[name] = Entry(name)
        return self._entries[name]

    def _start(self, name: str, model: RewardModel) -> Engine:
        return Engine(
            name,
            model,
            max_batch_size=self._max_batch_size,
            max_wait_ms=self._max_wait_ms,
            max_queue=self._max_queue,
            observer=self.observer,
        )

    async def _fill(self, entry: Entry, loaded: asyncio.Future[RewardModel]) -> None:
        try:
            model = await loaded
        except Exception as error:  # whatever it is, it is the entry's and not the server's
            entry.failure = f"{type(error).__name__}: {error}"
            return
        if self._entries.get(entry.name) is entry:
            entry.engine = self._start(entry.name, model)
        _tidy()


def _tidy() -> None:
    """Collect what is gone, and keep the collector from what stays.

    Among all that torch and a model consist of, one full collection takes a quarter of a second, in which nobody is answered.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
