"""One model that many requests ask at once: admission, deadlines, and questions driven to their answers."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from dina_lrm.errors import ValueRangeError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Asker, Question, Reading
from dina_lrm.serve.errors import DeadlineError, DrainingError, QueueFullError, WorkerError
from dina_lrm.serve.observer import EngineObserver, Observer
from dina_lrm.serve.prompts import PromptCache
from dina_lrm.serve.threads import use_torch_threads
from dina_lrm.serve.worker import CallWork, ReadWork, Work, Worker
from dina_lrm.types import Conditioning

T = TypeVar("T")
ASIDE_THREADS = min(4, os.cpu_count() or 1)
BATCHES_AHEAD = 4  # of one question's states, so that batches are full; they are in vain if nobody waits any more
EngineStatus: TypeAlias = Literal["ready", "draining", "failed"]


class Engine:
    """A model with a queue before it; all but `close` is called from one event loop.

    A request enters by `admit`, which takes places for its states or refuses it, and leaves with its answer. Its
    question's own steps (drawing noise, summing up) run in threads aside, its states are read by the worker, in batches
    with those of others. Whoever stops waiting, because time is up or the client hung up, takes the work along: of a
    question of `asker` no more is made than the reading that it is at.

    Attributes:
        name: of the model.
        model: who reads.
        max_batch_size: most states in one forward pass.
        max_wait_ms: how long a reading waits for company.
        max_queue: most states that are accepted and not yet answered.
    """

    def __init__(
        self,
        name: str,
        model: RewardModel,
        *,
        max_batch_size: int = 8,
        max_wait_ms: float = 10.0,
        max_queue: int = 512,
        observer: Observer,
    ) -> None:
        self.name, self.model = name, model
        self.max_batch_size, self.max_wait_ms, self.max_queue = max_batch_size, max_wait_ms, max_queue
        self._observer = EngineObserver(observer, name)
        self._prompts = PromptCache()
        self._tickets = itertools.count()
        self._accepted = 0
        self._visits = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._worker = Worker(name, model, max_batch_size, self._observer)
        # Several, so that one large question's noise does not hold up the others' steps; with a torch thread each.
        self._aside = ThreadPoolExecutor(ASIDE_THREADS, f"dina-lrm {name} aside", use_torch_threads, (1,))

    @property
    def status(self) -> EngineStatus:
        """Whether requests are accepted."""
        if self._worker.failure is not None:
            return "failed"
        return "draining" if self._draining else "ready"

    @property
    def asker(self) -> Asker:
        """Makes questions for this engine, whose states are made a few batches ahead and not all at once."""
        return replace(self.model.asker, states_ahead=BATCHES_AHEAD * self.max_batch_size)

    @property
    def accepted(self) -> int:
        """States accepted and not yet answered."""
        return self._accepted

    @asynccontextmanager
    async def admit(self, *, client: str, states: int = 1, deadline: float | None = None) -> AsyncIterator[Visit]:
        """Enter with a request; inside, its places are held and its deadline is watched.

        Args:
            client: who takes turns with others.
            states: places taken at once; a question that needs more takes more.
            deadline: on `time.monotonic()`; None waits as long as it takes.

        Yields:
            The request's way to the model.

        Raises:
            QueueFullError: too many states are accepted already.
            ValueRangeError: more states than the queue ever holds.
            DeadlineError: time was up inside.
            DrainingError: nothing more is accepted.
            WorkerError: nothing can be read any more.
        """
        visit = Visit(self, client, next(self._tickets))
        self._take_places(visit, states)
        self._visits += 1
        self._empty.clear()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()) as limit:
                yield visit
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineError("the request's deadline has passed, and its work was dropped") from error
        finally:
            self._accepted -= visit.places
            self._observer.accepted(self._accepted)
            self._visits -= 1
            if not self._visits:
                self._empty.set()

    async def answer(self, question: Question[T], *, client: str, deadline: float | None = None) -> T:
        """Answer one question; arguments and errors as in `admit`."""
        async with self.admit(client=client, deadline=deadline) as visit:
            return await visit.answer(question)

    async def encode_prompts(self, prompts: Sequence[str], *, client: str = "") -> Conditioning:
        """Encode prompts, or remember them; errors as in `admit`."""
        async with self.admit(client=client) as visit:
            return await visit.encode_prompts(prompts)

    async def call(self, function: Callable[[RewardModel], T], *, client: str = "") -> T:
        """Do something with the model between two batches; errors as in `admit`."""
        async with self.admit(client=client) as visit:
            return await visit.call(function)

    async def drain(self) -> None:
        """Accept nothing more, and wait until all that was accepted is answered."""
        self._draining = True
        await self._empty.wait()

    def close(self) -> None:
        """Stop after the batch that is being read; what is open fails. Blocks as long as that batch takes."""
        self._draining = True
        self._worker.close()
        self._aside.shutdown(wait=False, cancel_futures=True)
        self._observer.forget()

    def _take_places(self, visit: Visit, states: int) -> None:
        """Let a request hold at least so many places."""
        if self._worker.failure is not None:
            raise WorkerError(self._worker.failure)
        if not visit.places and self._draining:
            raise DrainingError(f"model {self.name!r} finishes what it has accepted and accepts nothing more")
        if states > self.max_queue:
            raise ValueRangeError(
                f"the request asks for {states} states at once, at most {self.max_queue} are accepted; ask for fewer "
                "samples, levels or draws"
            )
        others = self._accepted - visit.places
        if others + states > self.max_queue:
            raise QueueFullError(
                f"{others} states are accepted already and the queue holds {self.max_queue}, which leaves no room for "
                f"{states} more; ask again later",
                self._worker.seconds_ahead(others),
            )
        self._count_places(visit, states)

    def _count_places(self, visit: Visit, states: int) -> None:
        more = max(0, states - visit.places)
        visit.places += more
        self._accepted += more
        self._observer.accepted(self._accepted)

    async def _step(self, question: Question[T], utility: Tensor | None) -> _Step[Any]:
        """Go on with a question, aside: it draws noise and checks inputs, which must hold up neither loop nor model."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, _advance, question, utility)

    async def _finish(self, work: Work[T]) -> T:
        self._worker.submit(work)
        try:
            return await work.future
        except asyncio.CancelledError:
            self._worker.drop(work)
            raise


class Visit:
    """One request inside an engine.

    Attributes:
        places: that it holds in the queue.
        prompts_cut: places of the prompts, among those that it had encoded, that are longer than the model reads.
    """

    def __init__(self, engine: Engine, client: str, ticket: int) -> None:
        self.places = 0
        self.prompts_cut: tuple[int, ...] = ()
        self._engine, self._client, self._ticket = engine, client, ticket

    async def answer(self, question: Question[T]) -> T:
        """Drive a question to its answer: its readings meet those of others.

        All that the question does between its readings runs outside the event loop, so whatever it is made from is best
        checked inside it.

        Raises:
            InputError: of the question.
            QueueFullError: its first reading needs more places than are left. Those that follow are never refused, for how
                many there will be nobody knows, and what was read would be lost; they are counted all the same.
            WorkError: its states could not be read.
        """
        engine = self._engine
        step = await engine._step(question, None)
        if step.reading is not None:
            engine._take_places(self, len(step.reading.rows))
        while step.reading is not None:
            engine._count_places(self, len(step.reading.rows))
            step = await engine._step(question, await self._read(step.reading))
        return step.answer

    async def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts `[len(prompts)]` on the CPU, from the cache where it has them."""
        at_once, cache = self._engine.max_batch_size, self._engine._prompts
        cut = cache.cut & set(prompts)

        async def encode(new: Sequence[str]) -> Conditioning:
            chunks = [new[start : start + at_once] for start in range(0, len(new), at_once)]
            found = [await self.call(_PromptEncoding(chunk), len(chunk)) for chunk in chunks]
            for one in found:
                cut.update(one.cut)
                cache.cut.update(one.cut)
            return Conditioning.cat([one.conditioning for one in found])

        known = cache.count_known(prompts)
        self._engine._observer.prompts(known, len(prompts) - known)
        found = await cache.look_up(prompts, encode)
        cut |= cache.cut & set(prompts)
        self.prompts_cut = tuple(place for place, prompt in enumerate(prompts) if prompt in cut)
        return found

    async def call(self, function: Callable[[RewardModel], T], states: int = 1) -> T:
        """Do something with the model between two batches, when it is this client's turn.

        Args:
            function: what.
            states: that it is worth in the clients' turns: whatever is encoded counts as one that is read.

        Returns:
            What came of it.
        """
        now = time.monotonic()
        work: CallWork[T] = CallWork(
            client=self._client,
            ticket=self._ticket,
            key=object(),
            size=1,
            weight=states,
            leaves_at=now,
            arrived=now,
            future=asyncio.get_running_loop().create_future(),
            function=function,
        )
        return await self._engine._finish(work)

    async def _read(self, reading: Reading) -> Tensor:
        now = time.monotonic()
        work = ReadWork(
            client=self._client,
            ticket=self._ticket,
            key=reading.key,
            size=len(reading),
            weight=reading.joined,
            leaves_at=now + self._engine.max_wait_ms / 1000,
            arrived=now,
            future=asyncio.get_running_loop().create_future(),
            reading=reading,
        )
        return await self._engine._finish(work)


@dataclass(frozen=True)
class _PromptEncoding:
    """Some prompts, to be encoded in the model's thread."""

    prompts: Sequence[str]

    def __call__(self, model: RewardModel) -> _Encoded:
        cut = [prompt for prompt, is_cut in zip(self.prompts, model.cut_prompts(self.prompts), strict=True) if is_cut]
        return _Encoded(model.encode_prompts(self.prompts).to("cpu"), cut)


@dataclass(frozen=True)
class _Encoded:
    """Prompts, and which of them are longer than the model reads."""

    conditioning: Conditioning
    cut: Sequence[str]


@dataclass(frozen=True)
class _Step(Generic[T]):
    """Where a question stands: it asks for a reading, or, without one, has its answer."""

    reading: Reading | None
    answer: T


def _advance(question: Question[T], utility: Tensor | None) -> _Step[Any]:
    try:
        with torch.no_grad():
            return _Step(next(question) if utility is None else question.send(utility), None)
    except StopIteration as done:
        return _Step(None, done.value)
