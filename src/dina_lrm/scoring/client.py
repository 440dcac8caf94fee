"""A reward model behind HTTP, asked as if it stood in this process: `RewardClient`, and `AsyncRewardClient` for event loops.

Connections are kept alive and shared between threads (or tasks). A failure is an exception and never a reward: what the
server refuses is the `InputError` that a `RewardModel` would raise, in the server's words, and what could not be answered is
a `WorkError`, after tries within one deadline. A question has no effect but its answer, so asking twice does no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Self, TypeVar

import httpx2
import torch
from torch import Tensor

from dina_lrm.errors import InputError
from dina_lrm.noise import Adaptive, Fusion
from dina_lrm.scoring.calls import Call, Options, compare_call, ensemble_of, rank_call, score_calls, state_calls
from dina_lrm.scoring.protocol import Candidate, Images
from dina_lrm.scoring.retries import Effort, Patience, reason, refusal, retry_after, worth_another_try
from dina_lrm.scoring.samples import joined, joined_states
from dina_lrm.scoring.wire import BLOB_TYPE
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward

T = TypeVar("T")
P = ParamSpec("P")
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
    def options(self) -> Options:
        """What every request says."""
        return Options(self.model, self.patience.timeout)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the HTTP library's client."""
        headers = {"content-type": BLOB_TYPE}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        limits = httpx2.Limits(max_connections=self.max_connections, max_keepalive_connections=self.max_connections)
        return dict(base_url=self.url.rstrip("/"), headers=headers, limits=limits)


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


def _failure(error: Exception) -> str:
    """A transport error in words; some of them carry none."""
    return f"{type(error).__name__} {error}".strip()


async def _off_the_loop(build: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Build requests in a thread, because pictures are compressed and tensors copied; under the caller's gradient mode."""
    with_gradient = torch.is_grad_enabled()

    def run() -> T:
        with torch.set_grad_enabled(with_gradient):
            return build(*args, **kwargs)

    return await asyncio.to_thread(run)


def _settled(response: httpx2.Response, call: Call[T]) -> T:
    """The answer, where it is final.

    Raises:
        InputError: the server refuses the request.
    """
    if response.is_success:
        return call.read(response.content)
    raise refusal(response.status_code, response.content)


class RewardClient:
    """A `RewardFunction` whose model is on a server; safe to share between threads, and to send to other processes.

    Results are on the CPU. Many samples travel in several requests; each has the deadline to itself. Latents that need a
    gradient are refused, because none would come back.

    Args:
        url: of the server: `http://127.0.0.1:8000`.
        model: which of the server's models is asked; None asks its first.
        api_key: if the server wants one.
        timeout: seconds for one question, all tries and waits together.
        retries: tries after the first; only where nothing came back, and for status 408, 429 and 5xx.
        backoff: seconds before the second try, doubled before each further one; `Retry-After` is kept to.
        max_connections: open at once.
        transport: of the HTTP library, in place of its own.
    """

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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._open(Address(url, model, api_key, Patience(timeout, retries, backoff), max_connections), transport)

    def _open(self, address: Address, transport: httpx2.BaseTransport | None = None) -> None:
        self.address = address
        self._http = httpx2.Client(transport=transport, **address.settings)
        self._sleep, self._now = time.sleep, time.monotonic

    def __getstate__(self) -> Address:
        return self.address  # connections stay behind

    def __setstate__(self, address: Address) -> None:
        self._open(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(
        self,
        *,
        prompts: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int | Sequence[int] = 0,
        noise: Tensor | None = None,
    ) -> Reward:
        """As `RewardModel.score`, but for what only a model in this process can know (memory, gradients)."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        calls = score_calls(self.address.options, prompts, conditioning, images, latents, ensemble, seed, noise)
        return joined([self._ask(call) for call in calls])

    def score_state(self, state: NoisedState, conditioning: Conditioning) -> Reward:
        """As `RewardModel.score_state`, without gradients."""
        return joined_states([self._ask(call) for call in state_calls(self.address.options, state, conditioning)])

    def compare(
        self,
        *,
        a: Candidate,
        b: Candidate,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 4,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = 0.05,
    ) -> Comparison:
        """As `RewardModel.compare`."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        return self._ask(compare_call(self.address.options, prompt, conditioning, (a, b), ensemble, seed, tie_band))

    def rank(
        self,
        *,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = 0.05,
    ) -> Ranking:
        """As `RewardModel.rank`."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        return self._ask(
            rank_call(self.address.options, prompt, conditioning, images, latents, ensemble, seed, tie_band)
        )

    def ready(self) -> bool:
        """Whether the server answers questions now; False while it loads, drains or cannot be reached."""
        try:
            return self._http.get("/healthz", timeout=_timeout(CONNECT_SECONDS)).is_success
        except httpx2.RequestError:
            return False

    def _ask(self, call: Call[T]) -> T:
        effort = Effort(self.address.patience, self.address.url, self._now())
        while True:
            asked_to_wait = None
            try:
                response = self._http.post(call.path, content=call.content, timeout=_timeout(effort.left(self._now())))
            except httpx2.RequestError as error:
                told = _failure(error)
            else:
                if not worth_another_try(response.status_code):
                    return _settled(response, call)
                told, asked_to_wait = reason(response.status_code, response.content), retry_after(response.headers)
            self._sleep(effort.wait(self._now(), told, asked_to_wait))


class AsyncRewardClient:
    """The same for an event loop: every question is awaited, and cancelling one hangs up, so that the server drops the work.

    A client belongs to the loop that it first asked in.

    Args:
        url: of the server: `http://127.0.0.1:8000`.
        model: which of the server's models is asked; None asks its first.
        api_key: if the server wants one.
        timeout: seconds for one question, all tries and waits together.
        retries: tries after the first; only where nothing came back, and for status 408, 429 and 5xx.
        backoff: seconds before the second try, doubled before each further one; `Retry-After` is kept to.
        max_connections: open at once.
        transport: of the HTTP library, in place of its own.
    """

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
        self.address = Address(url, model, api_key, Patience(timeout, retries, backoff), max_connections)
        self._http = httpx2.AsyncClient(transport=transport, **self.address.settings)
        self._sleep, self._now = asyncio.sleep, time.monotonic

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def score(
        self,
        *,
        prompts: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int | Sequence[int] = 0,
        noise: Tensor | None = None,
    ) -> Reward:
        """As `RewardClient.score`."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        options = self.address.options
        calls = await _off_the_loop(score_calls, options, prompts, conditioning, images, latents, ensemble, seed, noise)
        return joined(await self._ask_all(calls))

    async def score_state(self, state: NoisedState, conditioning: Conditioning) -> Reward:
        """As `RewardClient.score_state`."""
        calls = await _off_the_loop(state_calls, self.address.options, state, conditioning)
        return joined_states(await self._ask_all(calls))

    async def compare(
        self,
        *,
        a: Candidate,
        b: Candidate,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 4,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = 0.05,
    ) -> Comparison:
        """As `RewardClient.compare`."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        options = self.address.options
        call = await _off_the_loop(compare_call, options, prompt, conditioning, (a, b), ensemble, seed, tie_band)
        return await self._ask(call)

    async def rank(
        self,
        *,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = 0.05,
    ) -> Ranking:
        """As `RewardClient.rank`."""
        ensemble = ensemble_of(sigmas, draws, fusion, antithetic)
        options = self.address.options
        call = await _off_the_loop(rank_call, options, prompt, conditioning, images, latents, ensemble, seed, tie_band)
        return await self._ask(call)

    async def ready(self) -> bool:
        """As `RewardClient.ready`."""
        try:
            return (await self._http.get("/healthz", timeout=_timeout(CONNECT_SECONDS))).is_success
        except httpx2.RequestError:
            return False

    async def _ask_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """All at once; the first that fails ends the others."""
        tasks = [asyncio.ensure_future(self._ask(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ask(self, call: Call[T]) -> T:
        effort = Effort(self.address.patience, self.address.url, self._now())
        while True:
            asked_to_wait = None
            try:
                left = effort.left(self._now())
                async with asyncio.timeout(left):
                    response = await self._http.post(call.path, content=call.content, timeout=_timeout(left))
            except (httpx2.RequestError, TimeoutError) as error:
                told = _failure(error)
            else:
                if not worth_another_try(response.status_code):
                    return _settled(response, call)
                told, asked_to_wait = reason(response.status_code, response.content), retry_after(response.headers)
            await self._sleep(effort.wait(self._now(), told, asked_to_wait))
