"""What all routes share: replies as they go out, content types, and what OpenAPI is told of bodies that we read ourselves."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from dina_lrm.scoring.wire import BLOB_TYPE, JSON_TYPE
from dina_lrm.serve.asked import MULTIPART_TYPE, media_type
from dina_lrm.serve.guards import state_of
from dina_lrm.serve.refusals import Refusal

__all__ = ["BLOB_BODY", "bodies", "json_response", "require_type", "schema_of"]

PROMPTS_CUT_HEADER = "x-drm-prompts-cut"
BINARY = {"type": "string", "format": "binary"}
BLOB_BODY = {BLOB_TYPE: {"schema": BINARY}}


def json_response(reply: BaseModel, status: int = 200, http: Request | None = None) -> Response:
    """A reply as it goes out.

    Args:
        reply: its body.
        status: of HTTP.
        http: the request, if it may hold prompts in words: a header tells how many of them the model did not read to the end.

    Returns:
        The response.
    """
    cut = set() if http is None else state_of(http.scope).get("prompts_cut", set())
    headers = {PROMPTS_CUT_HEADER: str(len(cut))} if cut else None
    return Response(reply.model_dump_json(), status, headers, JSON_TYPE)


def require_type(http: Request, accepted: str) -> None:
    """Refuse another content type.

    Raises:
        Refusal: status 415.
    """
    found = media_type(http.headers.get("content-type", ""))
    if found != accepted:
        raise Refusal(415, "wrong_content_type", f"content type must be {accepted}, got {found!r:.80}")


def schema_of(words: type[BaseModel]) -> dict[str, Any]:
    """A record's schema, whole in itself."""
    schema = words.model_json_schema()
    definitions = schema.pop("$defs", {})
    return _inlined(schema, definitions)


def bodies(words: type[BaseModel] | None, blob: bool = True) -> dict[str, Any]:
    """The content types of a route that takes candidates.

    Args:
        words: of a request in JSON or a form; None if only a blob is taken.
        blob: whether a blob is taken.

    Returns:
        What OpenAPI calls a request body.
    """
    content: dict[str, Any] = dict(BLOB_BODY) if blob else {}
    if words is not None:
        schema = schema_of(words)
        content[JSON_TYPE] = {"schema": schema}
        form = {"request": schema, "images": {"type": "array", "items": BINARY}}
        content[MULTIPART_TYPE] = {
            "schema": {"type": "object", "required": ["request", "images"], "properties": form},
            "encoding": {"request": {"contentType": JSON_TYPE}},
        }
    return {"requestBody": {"required": True, "content": content}}


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """References replaced by what they name; none of our records holds itself."""
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(one, definitions) for key, one in value.items()}
