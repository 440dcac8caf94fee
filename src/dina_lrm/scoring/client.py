"""A reward model behind HTTP, asked as if it stood in this process: `RewardClient`, and `AsyncRewardClient` for event loops.

Connections are kept alive and shared between threads (or tasks). A failure is an exception and never a reward: what the
server refuses is the `InputError` that a `RewardModel` would raise, in the server's words, and what could not be answered is
a `WorkError`, after tries within one deadline. A question has no effect but its answer, so asking twice does no harm.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import update_wrapper
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx2
import torch

from dina_lrm.errors import InputError
from dina_lrm.scoring.calls import Call, Calls
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.scoring.retries import Effort, Patience, reason, refusal, retry_after, worth_another_try
from dina_lrm.scoring.waiting import wait
from dina_lrm.scoring.wire import BLOB_TYPE

T = TypeVar("T")
P = ParamSpec("P")
M = TypeVar("M", bound=Callable[..., Any])
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """Which server is asked, and how.

    Attributes:
        url: of the server, without a path: `http://127.0.0.1:8000`.
        model: which of its models; None asks its first.
        api_key: if it wants one.
        patience: how long to try.
        max_connections: open at once; further questions wait for one.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    patience: Patience = Patience()
    max_connections: int = 256

    def __post_init__(self) -> None:
        try:
            sound = httpx2.URL(self.url).scheme in ("http", "https") and bool(httpx2.URL(self.url).host)
        except httpx2.InvalidURL:
            sound = False
        if not sound:
            raise InputError(f"url must name a server, such as http://127.0.0.1:8000, got {self.url!r}")

    @property
    def calls(self) -> Calls:
        """Makes the requests."""
        return Calls(self.model, self.patience.timeout)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the HTTP library's client."""
        headers = {"content-type": BLOB_TYPE}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        limits = httpx2.Limits(max_connections=self.max_connections, max_keepalive_connections=self.max_connections)
        return dict(base_url=self.url.rstrip("/"), headers=headers, limits=limits)


class Line:
    """Connections to one server, in one event loop; the only thing here that sends."""

    def __init__(self, address: Address, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._address = address
        self._http = httpx2.AsyncClient(transport=transport, **address.settings)
        self._sleep, self._now = asyncio.sleep, time.monotonic

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the server says so."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return (await self._http.get("/healthz", timeout=_timeout(CONNECT_SECONDS))).is_success
        except (httpx2.RequestError, TimeoutError):
            return False

    async def in_turn(self, call: Call[Any]) -> list[bytes]:
        """Answers to the requests of a call, one after another: many at once would fill the server's queue."""
        began = self._now()
        return [await self._answer(call.path, body, began) for body in call.bodies]

    async def _answer(self, path: str, body: bytes, began: float) -> bytes:
        effort = Effort(self._address.patience, self._address.url, began)
        while True:
            asked_to_wait = None
            try:
                left = effort.left(self._now())
                async with asyncio.timeout(left):
                    response = await self._http.post(path, content=body, timeout=_timeout(left))
            except (httpx2.RequestError, TimeoutError) as error:
                told = _failure(error)
            else:
                if response.is_success:
                    return response.content
                if not worth_another_try(response.status_code):
                    raise refusal(response.status_code, response.content)
                told, asked_to_wait = reason(response.status_code, response.content), retry_after(response.headers)
            await self._sleep(effort.wait(self._now(), told, asked_to_wait))


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


def _failure(error: Exception) -> str:
    """A transport error in words; some of them carry none."""
    return f"{type(error).__name__} {error}".strip()


class _Client:
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 0.5,
        max_connections: int = 256,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._open(Address(url, model, api_key, Patience(timeout, retries, backoff), max_connections), transport)

    def __getstate__(self) -> Address:
        return self.address  # connections stay behind

    def __setstate__(self, address: Address) -> None:
        self._open(address)

    def _open(self, address: Address, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.address = address
        self._line, self._process = Line(address, transport), os.getpid()


def _named_for(client: str, build: Callable[..., Call[Any]]) -> Callable[[M], M]:
    """A method's name and signature: what it is built from gives a call, and what it gives is the protocol's answer."""

    def named(ask: M) -> M:
        method: Any = update_wrapper(ask, build, ("__name__", "__doc__"))
        answer = getattr(RewardFunction, build.__name__).__annotations__["return"]
        method.__qualname__ = f"{client}.{build.__name__}"
        method.__annotations__ = {**build.__annotations__, "return": answer}
        method.__signature__ = signature(build).replace(return_annotation=answer)
        return ask

    return named


def _waited(build: Callable[Concatenate[Calls, P], Call[T]]) -> Callable[Concatenate[RewardClient, P], T]:
    """A method of the client that waits for its answer."""

    @_named_for("RewardClient", build)
    def ask(self: RewardClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._ask(build(self.address.calls, *args, **kwargs))

    return ask


def _awaited(
    build: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate[AsyncRewardClient, P], Awaitable[T]]:
    """A method of the client whose answer is awaited.

    Requests are built in a thread, because pictures are compressed and tensors copied; under the caller's gradient mode.
    """

    @_named_for("AsyncRewardClient", build)
    async def ask(self: AsyncRewardClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with_gradient = torch.is_grad_enabled()

        def built() -> Call[T]:
            with torch.set_grad_enabled(with_gradient):
                return build(self.address.calls, *args, **kwargs)

        return await self._ask(await asyncio.to_thread(built))

    return ask


class RewardClient(_Client):
    """A `RewardFunction` whose model is on a server; safe to share between threads, and to send to other processes.

    Results are on the CPU. Many samples travel in several requests. Latents that need a gradient are refused, because none
    would come back.

    Args:
        url: of the server: `http://127.0.0.1:8000`.
        model: which of the server's models is asked; None asks its first.
        api_key: if the server wants one.
        timeout: seconds for one question, all its requests, tries and waits together.
        retries: tries of a request after the first; only where nothing came back, and for status 408, 429 and 5xx.
        backoff: seconds before the second try, doubled before each further one; `Retry-After` is kept to.
        max_connections: open at once.
        transport: of the HTTP library's asynchronous kind, in place of its own.
    """

    score = _waited(Calls.score)
    score_state = _waited(Calls.score_state)
    compare = _waited(Calls.compare)
    rank = _waited(Calls.rank)
    best_of = _waited(Calls.best_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; of a process that is ending they are closed by its end."""
        if sys.is_finalizing():
            return
        wait(self._of_this_process().close())

    def ready(self) -> bool:
        """Whether the server answers questions now; False while it loads, drains or cannot be reached."""
        return wait(self._of_this_process().ready())

    def _ask(self, call: Call[T]) -> T:
        return call.read(wait(self._of_this_process().in_turn(call)))

    def _of_this_process(self) -> Line:
        """After a fork another: connections and their event loop stay with the parent."""
        if self._process != os.getpid():
            self._open(self.address)
        return self._line


class AsyncRewardClient(_Client):
    """The same for an event loop: every question is awaited, and cancelling one hangs up, so that the server drops the work.

    A client belongs to the loop that it first asked in; it takes what `RewardClient` takes.
    """

    score = _awaited(Calls.score)
    score_state = _awaited(Calls.score_state)
    compare = _awaited(Calls.compare)
    rank = _awaited(Calls.rank)
    best_of = _awaited(Calls.best_of)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._line.close()

    async def ready(self) -> bool:
        """Whether the server answers questions now; False while it loads, drains or cannot be reached."""
        return await self._line.ready()

    async def _ask(self, call: Call[T]) -> T:
        return call.read(await self._line.in_turn(call))
