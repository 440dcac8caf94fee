"""`/v1/attention`: where a model's head looks in a picture."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dina_lrm.scoring.questions import Candidates
from dina_lrm.serve.asked import Asked
from dina_lrm.serve.attention import AttentionReply, AttentionRequest, attention_maps
from dina_lrm.serve.desk import Desk
from dina_lrm.serve.engine import Engine, Visit
from dina_lrm.serve.routes.replies import bodies, json_response
from dina_lrm.serve.subject import Subject

__all__ = ["attention_router"]


def attention_router(desk: Desk) -> APIRouter:
    """The route that asks a model where it looks."""
    router = APIRouter(tags=["scores"])

    @router.post("/v1/attention", response_model=AttentionReply, openapi_extra=bodies(AttentionRequest, blob=False))
    async def attention(http: Request) -> Response:
        """Where the head's queries look in a picture, at one noise level: in JSON or in a form, as `/v1/rank` takes them."""
        answer = await desk.ask(http, AttentionRequest, (), _reply)
        return json_response(answer.value, http=http)

    return router


async def _reply(engine: Engine, visit: Visit, asked: Asked[AttentionRequest], subject: Subject) -> AttentionReply:
    sigma, seed = asked.request.sigma, asked.request.seed
    candidates = Candidates(subject.parts, subject.conditioning, seed)
    maps = await visit.call(lambda model: attention_maps(model, candidates, sigma))
    return AttentionReply.of(maps, engine.name, sigma, seed)
