"""Where every scoring route brings its request: from bytes to an answer, or to a refusal that says why."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from dina_lrm.errors import DataError, InputError, ShapeError, ValueRangeError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring.questions import Part
from dina_lrm.scoring.wire import MODEL_HEADER, CompareRequest, RankRequest, ScoreRequest
from dina_lrm.serve.asked import Asked, read_asked
from dina_lrm.serve.attention import AttentionRequest
from dina_lrm.serve.engine import Engine, Visit
from dina_lrm.serve.gate import Gate, Holder
from dina_lrm.serve.guards import UNANSWERED, client_of, holder_of, state_of
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.pictures import Fit, fitted_pixels, open_pictures
from dina_lrm.serve.refusals import Refusal, refusal_of
from dina_lrm.serve.settings import ServeSettings
from dina_lrm.serve.subject import Subject, check, conditioning_of, encode_pictures, encode_pixels, part_of
from dina_lrm.serve.threads import use_torch_threads
from dina_lrm.types import Conditioning

__all__ = [
    "DEADLINE_HEADER",
    "Answer",
    "Desk",
    "all_of",
    "check_samples",
    "fresh_seed",
    "read_body",
    "while_connected",
]

DEADLINE_HEADER = "x-drm-deadline-ms"
MOST_THREADS = 4
BYTES_A_PIXEL = 4  # of a picture until its request is answered: three, and its latents

T = TypeVar("T")
R = TypeVar("R", ScoreRequest, CompareRequest, RankRequest, AttentionRequest)
AnswerOf: TypeAlias = Callable[[Engine, Visit, Asked[R], Subject], Awaitable[T]]


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a model found, and which.

    Attributes:
        value: the finding.
        model: name of who found it.
        revision: a hash of its weights and its configuration.
        prompts_cut: places of prompts that are longer than it reads.
    """

    value: T
    model: str
    revision: str
    prompts_cut: tuple[int, ...] = ()


class Desk:
    """Reads requests, finds their model and brings them there.

    Attributes:
        pool: models by name.
        settings: limits.
        gate: whether new work is let in.
    """

    def __init__(self, pool: ModelPool, settings: ServeSettings, gate: Gate) -> None:
        self.pool, self.settings, self.gate = pool, settings, gate
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        # One torch thread each: a pool of threads behind every one of them would fight with the model's for the cores.
        self._threads = ThreadPoolExecutor(threads, "dina-lrm desk", use_torch_threads, (1,))
        self._revisions: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do what takes a processor for a while outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def admit(self, http: Request, body_names_model: bool = True) -> str | None:
        """Refuse, before a body is read, what would be refused after it.

        Args:
            http: the request.
            body_names_model: the body may name another model than the default; then nothing is known of its queue yet.

        Returns:
            The model that its header or query names.

        Raises:
            DrainingError: the server is being stopped.
            UnavailableError: nobody answers for the model now, or its queue is full.
        """
        self.gate.check()
        name = http.headers.get(MODEL_HEADER) or http.query_params.get("model")
        if name is None and body_names_model and len(self.pool.entries) > 1:
            return None
        # In and out again: a place that a slow body holds is one that nobody else has.
        async with self.pool.engine(name).admit(client=client_of(http.scope)):
            return name

    async def ask(self, http: Request, kind: type[R], takes: Sequence[str], answer_of: AnswerOf[R, T]) -> Answer[T]:
        """Answer a request about pictures or latents, as long as the client waits for it.

        Args:
            http: the request.
            kind: of its words.
            takes: names of the tensors that have a meaning in it.
            answer_of: the model, the way to it, the request and its subject to an answer.

        Returns:
            The answer.

        Raises:
            Refusal: with its status.
        """
        named = await self.admit(http)
        body = await read_body(http.receive)
        asked: Asked[R] = await self.aside(
            read_asked, kind, http.headers.get("content-type", ""), body, self.settings.max_samples, takes
        )
        try:
            engine = self.pool.engine(asked.request.model or named)
            return await while_connected(http.receive, self.answered(http, engine, asked, answer_of))
        except InputError as error:
            raise refusal_of(error, asked.input_status) from error

    async def answered(self, http: Request, engine: Engine, asked: Asked[R], answer_of: AnswerOf[R, T]) -> Answer[T]:
        """Answer a request that was read, whoever waits for it.

        Args:
            http: the request.
            engine: of the model.
            asked: what was read.
            answer_of: as in `ask`.

        Returns:
            The answer.

        Raises:
            InputError: of the request.
        """

        async def work(visit: Visit) -> T:
            async with self.subject(engine, visit, asked, holder_of(http.scope)) as subject:
                words = prompts_of(asked.request)
                self.note(http, engine, len(subject), words)
                self.note_cut(http, [words[place] for place in visit.prompts_cut])
                return await answer_of(engine, visit, asked, subject)

        return await self.admitted(http, engine, work, asked.request.deadline_ms, states_of(asked, self.settings))

    async def admitted(
        self,
        http: Request,
        engine: Engine,
        work: Callable[[Visit], Awaitable[T]],
        deadline_ms: int | None = None,
        states: int = 1,
    ) -> Answer[T]:
        """Do work in a model's queue.

        Args:
            http: the request, its body read.
            engine: of the model.
            work: what is done there.
            deadline_ms: that the request names; else the header may.
            states: that will be read at least: there is room for them before anything is made for them.

        Returns:
            What came of it.
        """
        deadline_ms = deadline_ms or _deadline_of(http)
        # One clock for all that is asked on behalf of a request: whoever asks again has no more time for it.
        began = state_of(http.scope).setdefault("began", time.monotonic())
        deadline = None if deadline_ms is None else began + deadline_ms / 1000
        async with engine.admit(client=client_of(http.scope), states=states, deadline=deadline) as visit:
            return Answer(await work(visit), engine.name, self.revision(engine), visit.prompts_cut)

    def note(self, http: Request, engine: Engine, samples: int, prompts: Sequence[str]) -> None:
        """Say what the log tells of a request, beside what it tells already: several models may answer one.

        Args:
            http: the request.
            engine: who answers.
            samples: candidates that it looks at.
            prompts: in words; they appear only where the settings say so.
        """
        facts = state_of(http.scope).setdefault("facts", {"model": engine.name, "samples": 0})
        if engine.name not in facts["model"].split(", "):
            facts["model"] += f", {engine.name}"
        facts["samples"] += samples
        if self.settings.log_prompts:
            facts["prompts"] = list(dict.fromkeys((*facts.get("prompts", ()), *prompts)))

    def note_cut(self, http: Request, prompts: Sequence[str]) -> None:
        """Remember prompts that are longer than the model reads, for the log and the answer's header."""
        if prompts:
            state_of(http.scope).setdefault("prompts_cut", set()).update(prompts)

    async def conditioning(self, visit: Visit, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts.

        Raises:
            ValueRangeError: one is longer than the server reads.
        """
        longest = max(map(len, prompts))
        if longest > self.settings.max_prompt_chars:
            raise ValueRangeError(
                f"a prompt has {longest} characters, at most {self.settings.max_prompt_chars} are read"
            )
        return await visit.encode_prompts(prompts)

    def revision(self, engine: Engine) -> str:
        """What tells a model from any that answers otherwise."""
        if engine not in self._revisions:
            told = engine.model.fingerprint + engine.model.config.model_dump_json()
            self._revisions[engine] = hashlib.sha256(told.encode()).hexdigest()[:16]
        return self._revisions[engine]

    @asynccontextmanager
    async def subject(self, engine: Engine, visit: Visit, asked: Asked[R], holder: Holder) -> AsyncIterator[Subject]:
        """Candidates and prompts, encoded and checked; inside, there is memory for them.

        Args:
            engine: whose model reads them.
            visit: way to it.
            asked: pictures or tensors, prompts in words or encoded.
            holder: on whose account decoded pictures are held.

        Yields:
            What a question is made about.

        Raises:
            InputError: something is missing, or stands twice, or does not fit the model.
            QueueFullError: other requests take all the memory there is for pictures, or the client's all that it may.
            Refusal: too many pixels.
        """
        device, settings, tensors = engine.model.device, self.settings, asked.tensors
        backbone = engine.model.network.backbone
        conditioning = conditioning_of(tensors)
        words = prompts_of(asked.request)
        if (conditioning is None) == (not words):
            raise DataError("a request has prompts in words, or prompt_embeds in a blob, and not both")
        latents = tensors.get("latents", tensors.get("noised_latents"))
        kinds = [name for name in ("latents", "noised_latents", "pixels") if name in tensors] + ["images"] * bool(
            asked.files
        )
        if len(kinds) != 1:
            raise DataError(f"a request has candidates of one kind (images, latents or pixels), got {kinds or 'none'}")
        fit = Fit.of(backbone)
        pixels = await self.aside(fitted_pixels, asked.files, fit, settings) if asked.files else 0
        with holder.hold(BYTES_A_PIXEL * pixels, settings.max_held_bytes, settings.max_client_bytes):
            if latents is not None:
                parts: tuple[Part, ...] = (part_of(latents, device, settings),)
            elif "pixels" in tensors:
                parts = await encode_pixels(visit, tensors["pixels"], engine.max_batch_size, settings)
            else:
                pictures = await self.aside(open_pictures, asked.files, fit)
                parts = await encode_pictures(visit, pictures, engine.max_batch_size, settings)
            if conditioning is None:
                conditioning = await self.conditioning(visit, words)
            subject = Subject(parts, conditioning.to(device))
            check(subject, backbone, settings)
            yield subject


async def read_body(receive: Receive) -> bytearray:
    """All of a body, in one piece that grows as it comes: a length that is only declared allocates nothing.

    Raises:
        ClientDisconnect: the client is gone.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Do work for a client; if it hangs up, the work is cancelled.

    Args:
        receive: tells of the client.
        work: what it waits for.

    Returns:
        What came of the work.

    Raises:
        Refusal: the client hung up; nobody reads it but the log.
    """
    job, gone = asyncio.ensure_future(work), asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise Refusal(UNANSWERED, "client_closed", "the client hung up")
        return job.result()
    finally:
        for task in (job, gone):
            task.cancel()
        # So that places in the queue are given back before the request ends.
        await asyncio.gather(job, gone, return_exceptions=True)


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do works at once; with the first that fails the others end.

    Args:
        works: what is to be done.

    Returns:
        What came of each, in order.

    Raises:
        Exception: that of the first that failed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def fresh_seed() -> int:
    """A seed nobody chose, small enough for every JSON reader."""
    return secrets.randbelow(2**53)


def states_of(asked: Asked[Any], settings: ServeSettings) -> int:
    """States that a request makes the model read at least; all of them where draws are not adaptive.

    Args:
        asked: the request.
        settings: limits.

    Returns:
        Candidates x levels x draws.

    Raises:
        ValueRangeError: too many candidates, or too many states at most.
        ShapeError: neither one prompt nor one a candidate.
    """
    options, samples = asked.request, samples_of(asked)
    check_samples(samples, settings)
    prompts = len(prompts_of(options))
    if isinstance(options, AttentionRequest):
        if samples != 1:
            raise ShapeError(f"attention is of one picture, got {samples}")
        return 1
    if prompts not in (0, 1, samples):
        raise ShapeError(f"{samples} samples need 1 or {samples} prompts, got {prompts}")
    adaptive = isinstance(options.rule, Adaptive)
    draws = options.rule.max_draws if isinstance(options.rule, Adaptive) else options.rule
    # An adaptive score looks first after three draws, a contest after one or two; antithetic draws come in pairs.
    first = min(draws, (3 if isinstance(options, ScoreRequest) else 1) * (2 if options.antithetic else 1))
    states = samples * len(options.sigmas) * draws
    if states > settings.max_states:
        raise ValueRangeError(
            f"{samples} candidates x {len(options.sigmas)} sigmas x {draws} draws are {states} states, at most "
            f"{settings.max_states} are read for one request"
        )
    return max(1, states // draws * first if adaptive else states)


def check_samples(samples: int, settings: ServeSettings) -> None:
    """Refuse too many candidates.

    Args:
        samples: how many there are.
        settings: how many there may be.

    Raises:
        ValueRangeError: more.
    """
    if samples > settings.max_samples:
        raise ValueRangeError(f"a request holds at most {settings.max_samples} candidates, got {samples}")


def samples_of(asked: Asked[Any]) -> int:
    """Candidates in a request, by the largest thing it holds."""
    return max(len(asked.files), *(len(tensor) for tensor in asked.tensors.values()), 0)


def prompts_of(request: ScoreRequest | CompareRequest | RankRequest | AttentionRequest) -> tuple[str, ...]:
    """The prompts of a request in words."""
    match request:
        case ScoreRequest():
            return request.prompts
        case CompareRequest() | RankRequest() | AttentionRequest():
            return () if request.prompt is None else (request.prompt,)


def _deadline_of(http: Request) -> int | None:
    text = http.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 9 and int(text) > 0):
        raise Refusal(400, "bad_request", f"{DEADLINE_HEADER} must be a whole number of milliseconds, got {text!r:.40}")
    return int(text)
