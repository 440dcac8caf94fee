"""The server, put together: routes inside, guards around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

import dina_lrm
from dina_lrm.errors import DinaError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.wire import ErrorReply
from dina_lrm.serve.arena import Arena, arena_router
from dina_lrm.serve.desk import Desk
from dina_lrm.serve.documents import documents_router
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.guards import UNANSWERED, BodyGuard, HostGuard, KeyGuard, OriginGuard
from dina_lrm.serve.logs import AccessLog
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.pages import is_page_path, pages_router
from dina_lrm.serve.refusals import Refusal, refusal_of
from dina_lrm.serve.routes.attention import attention_router
from dina_lrm.serve.routes.health import health_router
from dina_lrm.serve.routes.models import models_router
from dina_lrm.serve.routes.protocol import protocol_router
from dina_lrm.serve.routes.scores import scores_router
from dina_lrm.serve.routes.trainers import trainers_router
from dina_lrm.serve.settings import ServeSettings

__all__ = ["create_app"]

OPEN_PATHS = ("/healthz", "/health", "/docs", "/openapi.json")
DESCRIPTION = (
    "Rewards of pictures and latents, with how sure they are. A key, where one is needed, travels as a bearer token."
)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503, 504)
}


def create_app(
    pool: ModelPool,
    settings: ServeSettings | None = None,
    arena: Arena | None = None,
    *,
    sources: Mapping[str, Callable[[], RewardModel]] | None = None,
    device: str = "cpu",
    gate: Gate | None = None,
) -> FastAPI:
    """An app that any ASGI server runs.

    Args:
        pool: of models; it is closed with the app.
        settings: limits and keys.
        arena: where people vote; None for none.
        sources: models to load when the app starts, by name; it answers `loading` until the first is there.
        device: where models go that are loaded over HTTP.
        gate: shut by whoever stops the server; None makes one.

    Returns:
        The app.
    """
    settings = settings or ServeSettings()
    gate = gate or Gate()
    desk = Desk(pool, settings, gate)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for name, load in (sources or {}).items():
            pool.load(name, load)
        yield
        if arena is not None:
            arena.close()
        await pool.close()
        desk.close()

    app = _Guarded(
        title="DiNa-LRM",
        description=DESCRIPTION,
        version=dina_lrm.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=ERRORS,
        exception_handlers={
            HTTPException: _refused,
            DinaError: _refused,
            RequestValidationError: _invalid,
            ClientDisconnect: _gone,
            Exception: _refused,  # answered here, then raised again for the log
        },
    )
    routers = (scores_router(desk), protocol_router(desk), models_router(desk, device), health_router(desk))
    for router in (*routers, trainers_router(desk), attention_router(desk), pages_router(), documents_router(app)):
        app.include_router(router)
    if arena is not None:
        app.include_router(arena_router(arena, pool))
    app.guard(settings, gate, pool)
    return app


class _Guarded(FastAPI):
    """An app behind its guards, which see a request before the framework does."""

    _outer: ASGIApp | None = None

    def guard(self, settings: ServeSettings, gate: Gate, pool: ModelPool) -> None:
        """Put the guards up."""
        inner: ASGIApp = super().__call__
        inner = BodyGuard(inner, settings, gate)
        # Where strangers come without keys, a name that costs nothing would buy turns and room.
        inner = KeyGuard(inner, settings.api_keys, _is_open, takes_names=not settings.no_auth)
        inner = OriginGuard(inner, settings.allowed_origins)
        inner = HostGuard(inner, settings.allowed_hosts)
        self._outer = AccessLog(inner, pool.observer, gate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._outer is not None
        await self._outer(scope, receive, send)


def _is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or is_page_path(path)


async def _refused(http: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    http.state.kind = refusal.kind
    return refusal.response()


async def _invalid(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return await _refused(http, Refusal(422, "bad_input", f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}"))


async def _gone(http: Request, _: Exception) -> Response:
    return await _refused(http, Refusal(UNANSWERED, "client_closed", "the client hung up"))
