"""Where the head looks in a picture: maps of its queries' attention, for the page."""

from __future__ import annotations

from typing import Self

import torch
from fastapi import APIRouter, Request, Response
from torch import Tensor

from dina_lrm.errors import InputError
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Candidates
from dina_lrm.scoring.wire import Seed, Sigma, WireReply, WireRequest
from dina_lrm.serve.asked import read_asked
from dina_lrm.serve.desk import Desk, read_body
from dina_lrm.serve.engine import Visit
from dina_lrm.serve.pictures import Fit, open_pictures
from dina_lrm.serve.refusals import Refusal, refusal_of
from dina_lrm.serve.routes.replies import bodies, json_response
from dina_lrm.serve.subject import Subject, check, encode_pictures

__all__ = ["AttentionReply", "AttentionRequest", "attention_maps", "attention_router"]


class AttentionRequest(WireRequest):
    """`POST /v1/attention`: one picture under one prompt.

    Attributes:
        model: which of the server's models is asked; null asks its first.
        prompt: of the picture.
        images: one file in base64; left out where it travels in a part of a multipart body.
        sigma: noise level at which the picture is read.
        seed: of the noise; the first draw of a score with this seed meets the same.
    """

    model: str | None = None
    prompt: str
    images: tuple[str, ...] = ()
    sigma: Sigma = 0.4
    seed: Seed = 0


class AttentionReply(WireReply):
    """Maps of attention over the picture, in the order of its rows; each sums to 1.

    Attributes:
        model: the name the server knows it by.
        sigma: noise level at which the picture was read.
        seed: what the noise was drawn from.
        queries: a map `[h][w]` of each query of the head.
        mean: their mean `[h][w]`: utility is the mean over queries too.
    """

    model: str
    sigma: float
    seed: int
    queries: list[list[list[float]]]
    mean: list[list[float]]

    @classmethod
    def of(cls, maps: Tensor, model: str, sigma: float, seed: int) -> Self:
        """From maps `[q h w]`.

        Args:
            maps: on any device.
            model: its name.
            sigma: of the reading.
            seed: of its noise.
        """
        maps = maps.detach().float().cpu()
        return cls(model=model, sigma=sigma, seed=seed, queries=maps.tolist(), mean=maps.mean(dim=0).tolist())


def attention_router(desk: Desk) -> APIRouter:
    """The route that asks a model where it looks."""
    router = APIRouter(tags=["scores"])

    @router.post("/v1/attention", response_model=AttentionReply, openapi_extra=bodies(AttentionRequest, blob=False))
    async def attention(http: Request) -> Response:
        """Where the head's queries look in a picture, at one noise level: in JSON or in a form, as `/v1/rank` takes them."""
        named = await desk.admit(http)
        body = await read_body(http.receive)
        asked = await desk.aside(read_asked, AttentionRequest, http.headers.get("content-type", ""), body, 1)
        request, settings = asked.request, desk.settings
        if len(asked.files) != 1 or asked.tensors:
            raise Refusal(asked.input_status, "bad_input", f"attention is of one picture, got {len(asked.files)}")
        if len(request.prompt) > settings.max_prompt_chars:
            told = f"a prompt has {len(request.prompt)} characters, at most {settings.max_prompt_chars} are read"
            raise Refusal(asked.input_status, "bad_input", told)
        engine = desk.pool.engine(request.model or named)

        async def work(visit: Visit) -> Tensor:
            backbone = engine.model.network.backbone
            fit = Fit(backbone.native_size, backbone.image_multiple)
            pictures = await desk.aside(open_pictures, asked.files, fit, settings)
            parts = await encode_pictures(visit, pictures, 1, settings)
            conditioning = (await visit.encode_prompts([request.prompt])).to(engine.model.device)
            check(Subject(parts, conditioning), backbone, settings)
            candidates = Candidates(parts, conditioning, request.seed)
            return await visit.call(lambda model: attention_maps(model, candidates, request.sigma))

        desk.note(http, engine, 1, (request.prompt,))
        try:
            answer = await desk.inside(http, engine, work)
        except InputError as error:
            raise refusal_of(error, asked.input_status) from error
        return json_response(AttentionReply.of(answer.value, answer.model, request.sigma, request.seed))

    return router


def attention_maps(model: RewardModel, candidates: Candidates, sigma: float) -> Tensor:
    """Attention of each query of the head over one picture, as the first draw of a score reads it.

    Args:
        model: with a head that attends.
        candidates: one.
        sigma: noise level.

    Returns:
        `[q h w]`, each map with sum 1.

    Raises:
        ConfigError: the head has no attention.
    """
    question = model.asker.score(candidates, NoiseEnsemble((sigma,)))
    with torch.no_grad():
        reading = next(question)
        question.close()
        return model.network.attention(reading.state, reading.conditioning)[0]
