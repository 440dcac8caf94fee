"""What the server writes down: one JSON object a line, on stderr, without the words of prompts unless somebody asked."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dina_lrm.errors import DinaError, PromptCutWarning
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.guards import UNANSWERED, client_of, refuse, state_of
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.refusals import refusal_of

__all__ = ["AccessLog", "JsonFormatter", "configure", "describe"]

LOGGER = "dina_lrm.serve"
REQUEST_ID = b"x-request-id"
PROBES = ("/healthz", "/health", "/metrics")
GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_log = logging.getLogger(LOGGER)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, what happened, and the facts given as `extra={"facts": ...}`."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        row = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        row |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            row |= describe(record.exc_info[1])
        return json.dumps(row, default=str)


def configure(log_prompts: bool = False) -> None:
    """Send the server's log, uvicorn's and Python's warnings to stderr as JSON.

    Args:
        log_prompts: warnings may quote prompts.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn", logging.WARNING), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    if not log_prompts:
        warnings.filterwarnings("ignore", category=PromptCutWarning)


def describe(error: BaseException) -> dict[str, Any]:
    """An error without the words that a stranger may have put into its message; our own errors never quote a prompt.

    Args:
        error: what was raised.

    Returns:
        Its class and where it was raised; the message of our own errors too.
    """
    frames = traceback.extract_tb(error.__traceback__)
    told = {"error": type(error).__name__, "where": [f"{f.filename}:{f.lineno} {f.name}" for f in frames[-8:]]}
    return told | ({"message": str(error)} if isinstance(error, DinaError) else {})


class AccessLog:
    """The outermost part: names each request, counts it, writes down how it went, and answers when all else failed."""

    def __init__(self, app: ASGIApp, observer: Observer, gate: Gate) -> None:
        self._app, self._observer, self._gate = app, observer, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = state_of(scope)
        state["request_id"] = request_id = _request_id(scope)
        started = time.perf_counter()
        status = UNANSWERED

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID, request_id.encode())]}
            await send(message)

        # Who comes after the gate was shut is refused, and never waited for: there may be no end of them.
        awaited = not self._gate.draining
        if awaited:
            self._gate.enter()
        try:
            await self._app(scope, receive, named)
        except Exception as error:
            _log.error("failed", exc_info=error, extra={"facts": {"request_id": request_id}})
            if status == UNANSWERED:
                await refuse(refusal_of(error), scope, receive, named)
        finally:
            if awaited:
                self._gate.leave()
            self._tell(scope, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        state, route = state_of(scope), _route(scope)
        self._observer.answered(route, status, seconds)
        kind = state.get("kind")
        if kind is not None:
            self._observer.failed(kind)
        facts: Mapping[str, Any] = state.get("facts", {})
        cut = len(state.get("prompts_cut", ()))
        row = {
            "request_id": state["request_id"],
            "client": client_of(scope),
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            **({"kind": kind} if kind is not None else {}),
            **facts,
            **({"prompts_cut": cut} if cut else {}),
        }
        _log.log(_level(route, status), "request", extra={"facts": row})


def _level(route: str, status: int) -> int:
    """Probes ask every second, and nobody reads that they were answered."""
    if route in PROBES:
        return logging.DEBUG
    return logging.ERROR if status >= 500 and status not in (503, 504) else logging.INFO


def _route(scope: Scope) -> str:
    """Its pattern; what is asked of no route of ours has no name of its own."""
    route = scope.get("route")
    return getattr(route, "path", None) or "none"


def _request_id(scope: Scope) -> str:
    """The client's own, if it is a plain word; else a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID and GOOD_ID.fullmatch(str(value, "latin-1")):
            return str(value, "latin-1")
    return uuid.uuid4().hex[:16]
