"""`POST /v1/score`: protocol version 1, to the letter, as trainers' clients speak it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastapi import APIRouter, Request, Response

from dina_lrm.errors import InputError
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring.questions import Question
from dina_lrm.scoring.wire import BLOB_TYPE, PROTOCOL_HEADER, PROTOCOL_VERSION, ProtocolReply
from dina_lrm.serve.asked import LatentScores, read_latent_scores
from dina_lrm.serve.desk import Desk, check_samples, fresh_seed, read_body, while_connected
from dina_lrm.serve.engine import Engine, Visit
from dina_lrm.serve.refusals import Refusal, refusal_of
from dina_lrm.serve.routes.replies import BLOB_BODY, json_response, require_type
from dina_lrm.serve.subject import Subject, check, part_of
from dina_lrm.types import Conditioning, NoisedState, Reward

__all__ = ["protocol_router"]

VERSION = {"name": PROTOCOL_HEADER, "in": "header", "required": True, "schema": {"enum": [PROTOCOL_VERSION]}}
BODY = {"parameters": [VERSION], "requestBody": {"required": True, "content": BLOB_BODY}}


def protocol_router(desk: Desk) -> APIRouter:
    """The route of protocol version 1."""
    router = APIRouter(tags=["protocol 1"])

    @router.post("/v1/score", response_model=ProtocolReply, openapi_extra=BODY)
    async def score(http: Request) -> Response:
        """Raw scores of latents: a safetensors blob with latents, prompt_embeds, pooled_prompt_embeds, u, and seeds or none."""
        _check_headers(http)
        engine = desk.pool.engine(await desk.admit(http, body_names_model=False))
        body = await read_body(http.receive)
        try:
            asked, subject = await desk.aside(_read, desk, engine, body)
            desk.note(http, engine, len(subject), ())
            seeds = asked.seeds or tuple(fresh_seed() for _ in asked.u)

            async def work(visit: Visit) -> Reward:
                return await visit.answer(_question(engine, subject, asked.u, seeds))

            answered = desk.admitted(http, engine, work, states=len(seeds))
            answer = await while_connected(http.receive, answered)
        except InputError as error:
            raise refusal_of(error, 400) from error
        reply = ProtocolReply(
            protocol_version=PROTOCOL_VERSION,
            raw_scores=answer.value.utility.tolist(),
            rewards=answer.value.reward.tolist(),
            seeds=list(seeds),
            model=answer.model,
        )
        return json_response(reply)

    return router


def _check_headers(http: Request) -> None:
    require_type(http, BLOB_TYPE)
    version = http.headers.get(PROTOCOL_HEADER)
    if version != PROTOCOL_VERSION:
        told = f"header {PROTOCOL_HEADER} must be {PROTOCOL_VERSION}, got {'none' if version is None else repr(version)[:40]}"
        raise Refusal(426, "wrong_protocol_version", told, {PROTOCOL_HEADER: PROTOCOL_VERSION})


def _read(desk: Desk, engine: Engine, body: bytearray) -> tuple[LatentScores, Subject]:
    asked = read_latent_scores(body)
    check_samples(len(asked.u), desk.settings)
    conditioning = Conditioning(asked.prompt_embeds, asked.pooled_prompt_embeds)
    subject = Subject((part_of(asked.latents, asked.latents.device, desk.settings),), conditioning)
    check(subject, engine.model.network.backbone, desk.settings)
    return asked, subject


def _question(engine: Engine, subject: Subject, u: Sequence[float], seeds: Sequence[int]) -> Question[Reward]:
    """One draw a sample, each at its own level and from its own seed: the state that `score` would read."""
    # Moved here, where its places are taken: what waits at the door takes none of the device's memory.
    asker, device = engine.asker, engine.model.device
    latents, conditioning = subject.parts[0].latents.to(device), subject.conditioning.to(device)
    sigma = torch.tensor(asker.levels(u), device=latents.device)
    if asker.add_noise:
        noise = NoiseEnsemble().noise(latents, seeds)[0]
        state = asker.process.add_noise(latents, noise, sigma)
    else:
        state = NoisedState(latents, sigma)
    return (yield from asker.state(state, conditioning))
