"""The one thread that a model runs in, and what happens when a batch fails or the thread dies."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from dina_lrm.errors import WorkError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Reading
from dina_lrm.serve.batcher import Batcher, Share, Task
from dina_lrm.serve.errors import DrainingError, WorkerError
from dina_lrm.serve.observer import EngineObserver
from dina_lrm.serve.threads import use_torch_threads

R = TypeVar("R")
MOST_DEATHS = 3  # without a batch between them, before nobody is sent after the dead
SMOOTHING = 0.1  # of the measured rate: the weight of the last batch


@dataclass(eq=False, kw_only=True)
class Work(Task, ABC, Generic[R]):
    """A task that somebody awaits.

    Attributes:
        kind: of work, for who counts.
        arrived: when.
        future: of its result, in the loop of whoever awaits it.
        found: results of the units that were read, in order.
        deaths: how many workers died of a batch that held it.
    """

    kind: ClassVar[str]
    arrived: float
    future: asyncio.Future[R]
    found: list[Any] = field(default_factory=list)
    deaths: int = 0

    @staticmethod
    @abstractmethod
    def serve(model: RewardModel, shares: Sequence[Share[Any]]) -> Sequence[Any]:
        """What each share of a batch of such tasks comes to."""

    @abstractmethod
    def result(self) -> R:
        """Of the whole task, once all is found."""

    def rewind(self) -> None:
        """Forget what was found: all of it is to be read again, and without company if it was there when a worker died."""
        self.taken = 0
        self.found = []
        if self.deaths:
            self.key, self.leaves_at = self, -math.inf


@dataclass(eq=False, kw_only=True)
class ReadWork(Work[Tensor]):
    """Utilities of a reading.

    Attributes:
        reading: whose units are its utilities.
    """

    kind = "read"
    reading: Reading

    @staticmethod
    def serve(model: RewardModel, shares: Sequence[Share[ReadWork]]) -> Sequence[Tensor]:
        """One forward pass for all."""
        utility = model.read(Reading.cat([share.task.part(share.start, share.stop) for share in shares]))
        return torch.split(utility, [share.stop - share.start for share in shares])

    def part(self, start: int, stop: int) -> Reading:
        """Some of its units, with their own prompts only: the others' would be carried through every batch."""
        if stop - start == self.size:
            return self.reading
        part = self.reading[start:stop]
        used, rows = torch.unique(part.rows, return_inverse=True)
        return Reading(part.state, part.conditioning[used], rows, part.joined)

    def result(self) -> Tensor:
        return torch.cat(self.found)


@dataclass(eq=False, kw_only=True)
class CallWork(Work[R]):
    """Anything that is done with the model between two batches.

    Attributes:
        function: what.
    """

    kind = "call"
    function: Callable[[RewardModel], R]

    @staticmethod
    def serve(model: RewardModel, shares: Sequence[Share[CallWork[Any]]]) -> Sequence[Any]:
        """Each is a batch by itself."""
        return [share.task.function(model) for share in shares]

    def result(self) -> R:
        found: R = self.found[0]
        return found


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a value, or an error."""

    work: Work[Any]
    value: Any = None
    error: BaseException | None = None


class Worker:
    """Reads what is in line, batch after batch, in a thread of its own that no gradient is kept in.

    A batch that fails is read again task by task, so that only the culprit fails. If the thread dies, another one reads
    what the dead one held, each task alone: what kills twice is to blame, and its neighbours are not. What cannot be
    survived (a device in error, deaths in a row) fails all that is accepted, and what comes after.

    Attributes:
        failure: why nothing is read any more; None while all is well.
    """

    def __init__(self, name: str, model: RewardModel, max_batch_size: int, observer: EngineObserver) -> None:
        self.failure: str | None = None
        self._seconds: dict[str, float] = {}  # by kind of work: of one state, as measured
        self._name, self._model, self._observer = name, model, observer
        self._batcher: Batcher[Work[Any]] = Batcher(max_batch_size)
        self._open: dict[Work[Any], None] = {}  # accepted and not ended, in line or not
        self._serving: list[Share[Work[Any]]] = []
        self._deaths = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = torch.get_num_threads()
        self._thread = self._start()

    def submit(self, work: Work[Any]) -> None:
        """Put work in line.

        Raises:
            WorkerError: nothing is read any more.
            DrainingError: closed.
        """
        with self._changed:
            if self.failure is not None:
                raise WorkerError(self.failure)
            if self._closed:
                raise DrainingError(f"model {self._name!r} is unloaded")
            self._open[work] = None
            self._batcher.put(work)
            self._changed.notify()

    def drop(self, work: Work[Any]) -> None:
        """Forget work that nobody awaits any more; what is being read of it is read in vain."""
        with self._changed:
            self._open.pop(work, None)
            self._batcher.drop(work)

    def seconds_ahead(self, states: int) -> float:
        """How long it will take to read so many states and to make the calls in line, going by what was measured."""
        with self._changed:
            calls = sum(work.states for work in self._open if work.kind == CallWork.kind)
        return states * self._seconds.get(ReadWork.kind, 0.0) + calls * self._seconds.get(CallWork.kind, 0.0)

    def close(self) -> None:
        """End the thread after its batch; what is still open fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._fail_all(DrainingError(f"model {self._name!r} was unloaded"))

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"dina-lrm {self._name}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        use_torch_threads(self._threads)
        try:
            with torch.no_grad():
                while shares := self._next():
                    self._end(self._serve(shares))
        except BaseException as error:  # whatever ends a thread must not leave its clients waiting
            self._mourn(error)

    def _next(self) -> list[Share[Work[Any]]]:
        """The next batch, when there is one; empty at the end."""
        with self._changed:
            self._serving = []
            while not self._closed:
                now = time.monotonic()
                self._serving = self._batcher.take(now)
                if self._serving:
                    return self._serving
                leaves_at = self._batcher.leaves_at
                self._changed.wait(None if leaves_at is None else leaves_at - now)
            return []

    def _serve(self, shares: Sequence[Share[Work[Any]]]) -> list[Outcome]:
        started = time.monotonic()
        waited = [started - share.task.arrived for share in shares if share.start == 0]
        try:
            found: Sequence[Any] = shares[0].task.serve(self._model, shares)
        except Exception as error:
            if _is_fatal(error):
                raise
            if len(shares) > 1:
                return [outcome for share in shares for outcome in self._serve([share])]
            return [Outcome(shares[0].task, error=error)]
        self._deaths = 0
        self._count(shares, waited, time.monotonic() - started)
        outcomes = []
        for share, value in zip(shares, found, strict=True):
            share.task.found.append(value)
            if share.stop == share.task.size:
                outcomes.append(Outcome(share.task, share.task.result()))
        return outcomes

    def _count(self, shares: Sequence[Share[Work[Any]]], waited: Sequence[float], seconds: float) -> None:
        kind, states = shares[0].task.kind, sum(share.states for share in shares)
        last = seconds / states
        before = self._seconds.get(kind, last)
        self._seconds[kind] = before + SMOOTHING * (last - before)
        self._observer.served(kind, states, waited, seconds)

    def _end(self, outcomes: Sequence[Outcome]) -> None:
        """Tell whoever awaits them."""
        loops: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
        with self._changed:
            for outcome in outcomes:
                self._open.pop(outcome.work, None)
                self._batcher.drop(outcome.work)  # of a task that failed, units may still be in line
                loops.setdefault(outcome.work.future.get_loop(), []).append(outcome)
        for loop, told in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, told)

    def _mourn(self, error: BaseException) -> None:
        """Send another thread after one that died, if there is hope."""
        self._observer.died()
        self._deaths += 1
        told = f"the worker of model {self._name!r} died: {type(error).__name__}: {str(error)[:200]}"
        if self._deaths >= MOST_DEATHS or _is_fatal(error):
            with self._changed:
                self.failure = f"{told}; start the server again"
            self._fail_all(WorkerError(self.failure))
            return
        lost = WorkerError(f"{told}, twice with this request")
        self._end([Outcome(work, error=lost) for work in self._blamed()])
        with self._changed:
            self._batcher = Batcher(self._batcher.max_batch_size)
            for work in self._open:
                work.rewind()
                self._batcher.put(work)
            self._thread = self._start()

    def _blamed(self) -> list[Work[Any]]:
        """What was being read at two deaths."""
        with self._changed:
            for share in self._serving:
                share.task.deaths += 1
            return [share.task for share in self._serving if share.task.deaths > 1]

    def _fail_all(self, error: WorkError) -> None:
        self._end([Outcome(work, error=error) for work in list(self._open)])


def _tell(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.work.future.done():
            continue
        if outcome.error is not None:
            outcome.work.future.set_exception(outcome.error)
        else:
            outcome.work.future.set_result(outcome.value)


def _is_fatal(error: BaseException) -> bool:
    """A device that once failed so fails ever after, until the process ends."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)
