"""`/v1/models`: which models answer, and, where the settings allow it, others to come and go."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dina_lrm.scoring.wire import JSON_TYPE, LoadRequest, ModelFacts, ModelsReply
from dina_lrm.serve.asked import read_json
from dina_lrm.serve.desk import Desk, read_body
from dina_lrm.serve.models import Entry, ModelSource
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.routes.replies import json_response, require_type, schema_of

__all__ = ["models_router"]

BODY = {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema_of(LoadRequest)}}}}


def models_router(desk: Desk, device: str) -> APIRouter:
    """Routes that tell of models, load and unload them.

    Args:
        desk: whose pool it is.
        device: where loaded models go.

    Returns:
        The router.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", response_model=ModelsReply)
    async def models() -> Response:
        """All models, the default first."""
        entries = desk.pool.entries
        return json_response(
            ModelsReply(models=[_facts(desk, entry, place == 0) for place, entry in enumerate(entries)])
        )

    @router.post("", response_model=ModelFacts, status_code=202, openapi_extra=BODY)
    async def load(http: Request) -> Response:
        """Load a model that lies on the server's disk or the hub; it answers once its state is ready."""
        _check_allowed(desk)
        require_type(http, JSON_TYPE)
        wanted = read_json(LoadRequest, await read_body(http.receive))
        source = ModelSource(wanted.path, wanted.base, wanted.revision, wanted.dtype, device)
        desk.pool.load(wanted.name, source.load)
        return json_response(ModelFacts(name=wanted.name, state="loading"), 202)

    @router.delete("/{name}", response_model=ModelFacts)
    async def unload(name: str) -> Response:
        """Let a model finish what it has accepted, and forget it."""
        _check_allowed(desk)
        await desk.pool.unload(name)
        return json_response(ModelFacts(name=name, state="unloaded"))

    return router


def _check_allowed(desk: Desk) -> None:
    if not desk.settings.allow_load or not desk.settings.api_keys:
        told = "this server loads and unloads no models over HTTP; start it with --allow-load and API keys"
        raise Refusal(403, "forbidden", told)


def _facts(desk: Desk, entry: Entry, default: bool) -> ModelFacts:
    revision = None if entry.engine is None else desk.revision(entry.engine)
    return ModelFacts(name=entry.name, state=entry.status, default=default, revision=revision, detail=entry.failure)
