"""Every error as an HTTP answer: status, a word for programs, a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response

from dina_lrm import errors
from dina_lrm.errors import BaseUnavailableError, DinaError, InputError, WorkError
from dina_lrm.scoring.wire import JSON_TYPE, ErrorBody, ErrorReply
from dina_lrm.serve.errors import (
    DeadlineError,
    DrainingError,
    LoadingError,
    NameTakenError,
    QueueFullError,
    UnavailableError,
    UnknownModelError,
)

__all__ = ["Refusal", "refusal_of"]

LONGEST_MESSAGE = 1000
KINDS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 422: "invalid_value", 500: "internal"}


class Refusal(HTTPException):
    """An answer that is none, and why. An HTTPException, so that it passes through the framework as it is.

    Attributes:
        kind: a word for programs.
        raised: class of the error that it tells of, where a model in the client's process might raise it.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        raised: type[InputError] | None = None,
    ) -> None:
        super().__init__(status, " ".join(message.split())[:LONGEST_MESSAGE], dict(headers or {}))
        self.kind = kind
        self.raised = raised

    def response(self) -> Response:
        """As it goes out."""
        raised = None if self.raised is None else self.raised.__name__
        body = ErrorReply(error=ErrorBody(kind=self.kind, message=self.detail, type=raised))
        return Response(body.model_dump_json(exclude_none=True), self.status_code, self.headers, JSON_TYPE)


def refusal_of(error: Exception, input_status: int = 422) -> Refusal:
    """The answer to an error.

    Args:
        error: raised while a request was read or answered.
        input_status: of input that is wrong: 400 where the body is a blob, 422 where it is understood and refused.

    Returns:
        The answer; whatever is not one of our own errors says nothing of itself.
    """
    match error:
        case Refusal():
            return error
        case HTTPException():
            kind = KINDS.get(error.status_code, "http_error")
            return Refusal(error.status_code, kind, str(error.detail), error.headers)
        case QueueFullError():
            return _later(429, "queue_full", error)
        case LoadingError():
            return _later(503, "loading", error)
        case DrainingError():
            return _later(503, "draining", error)
        case UnavailableError():
            return _later(503, "unavailable", error)
        case DeadlineError():
            return Refusal(504, "deadline", str(error))
        case UnknownModelError():
            return Refusal(404, "unknown_model", str(error))
        case NameTakenError():
            return Refusal(409, "name_taken", str(error))
        case BaseUnavailableError():
            return Refusal(503, "base_unavailable", str(error), {"retry-after": "10"})
        case InputError():
            raised = type(error) if type(error) in vars(errors).values() else None
            return Refusal(input_status, "bad_input", str(error), raised=raised)
        case WorkError() | DinaError():
            return Refusal(500, "work_failed", str(error))
    return Refusal(500, "internal", "the server failed at this request; its log says why")


def _later(status: int, kind: str, error: UnavailableError) -> Refusal:
    return Refusal(status, kind, str(error), {"retry-after": str(max(1, math.ceil(error.retry_after)))})
