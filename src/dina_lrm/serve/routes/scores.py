"""`/v1/score_latents`, `/v1/score_images`, `/v1/compare`, `/v1/rank`: all that can be asked of a model, over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring.questions import Candidates, Question
from dina_lrm.scoring.wire import (
    BLOB_TYPE,
    CompareRequest,
    ComparisonReply,
    RankingReply,
    RankRequest,
    RewardReply,
    ScoreOptions,
    ScoreRequest,
)
from dina_lrm.serve.asked import COMPARED_TENSORS, SCORED_TENSORS, Asked
from dina_lrm.serve.desk import Answer, Desk, fresh_seed
from dina_lrm.serve.engine import Engine, Visit
from dina_lrm.serve.routes.replies import bodies, json_response, require_type
from dina_lrm.serve.subject import Subject
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward, check_sigma

__all__ = ["scored", "scores_router"]


def scores_router(desk: Desk) -> APIRouter:
    """Routes that ask a model about pictures or latents."""
    router = APIRouter(tags=["scores"])

    @router.post("/v1/score_images", response_model=RewardReply, openapi_extra=bodies(ScoreRequest))
    async def score_images(http: Request) -> Response:
        """Rewards of pictures under prompts. Pictures travel as base64 in JSON, or as parts of a form."""
        return await _score(desk, http)

    @router.post("/v1/score_latents", response_model=RewardReply, openapi_extra=bodies(None))
    async def score_latents(http: Request) -> Response:
        """Rewards of latents, or of states that are noised already, in a safetensors blob."""
        require_type(http, BLOB_TYPE)
        return await _score(desk, http)

    @router.post("/v1/compare", response_model=ComparisonReply, openapi_extra=bodies(CompareRequest))
    async def compare(http: Request) -> Response:
        """Probability that the first of two candidates is preferred, with its interval."""
        seed = _Seed()

        async def compared(engine: Engine, visit: Visit, asked: Asked[CompareRequest], subject: Subject) -> Comparison:
            candidates = Candidates(subject.parts, _one_prompt(subject), seed.one(asked.request))
            return await visit.answer(
                engine.asker.compare(candidates, _ensemble(asked.request), asked.request.tie_band)
            )

        answer = await desk.ask(http, CompareRequest, COMPARED_TENSORS, compared)
        reply = ComparisonReply.of(answer.value, answer.model, answer.revision, seed.value)
        return json_response(_told(reply, answer), http=http)

    @router.post("/v1/rank", response_model=RankingReply, openapi_extra=bodies(RankRequest))
    async def rank(http: Request) -> Response:
        """Candidates of one prompt in order, best first."""
        seed = _Seed()

        async def ranked(engine: Engine, visit: Visit, asked: Asked[RankRequest], subject: Subject) -> Ranking:
            candidates = Candidates(subject.parts, _one_prompt(subject), seed.one(asked.request))
            return await visit.answer(engine.asker.rank(candidates, _ensemble(asked.request), asked.request.tie_band))

        answer = await desk.ask(http, RankRequest, COMPARED_TENSORS, ranked)
        reply = RankingReply.of(answer.value, answer.model, answer.revision, seed.value)
        return json_response(_told(reply, answer), http=http)

    return router


async def _score(desk: Desk, http: Request) -> Response:
    answer = await desk.ask(http, ScoreRequest, SCORED_TENSORS, scored)
    reply = RewardReply.of(answer.value, answer.model, answer.revision)
    return json_response(_told(reply, answer), http=http)


def _told(reply: BaseModel, answer: Answer[Any]) -> BaseModel:
    """The reply, with the prompts that were cut."""
    return reply.model_copy(update={"prompts_cut": list(answer.prompts_cut)})


async def scored(engine: Engine, visit: Visit, asked: Asked[ScoreRequest], subject: Subject) -> Reward:
    """What a request for scores asks, answered.

    Args:
        engine: whose model is asked.
        visit: way to it.
        asked: levels, draws, seeds, and noise if it is given.
        subject: candidates and prompts.

    Returns:
        The rewards.

    Raises:
        InputError: what was given does not fit together.
    """
    return await visit.answer(_question(engine, asked, subject))


def _question(engine: Engine, asked: Asked[ScoreRequest], subject: Subject) -> Question[Reward]:
    options, tensors = asked.request, asked.tensors
    if "noised_latents" in tensors:
        return _state_question(engine, asked, subject)
    if "sigma" in tensors:
        raise DataError("sigma belongs to noised_latents; levels of clean candidates are said by sigmas")
    noise = tensors.get("noise")
    if noise is not None:
        shapes = [list(part.latents.shape) for part in subject.parts]
        if shapes != [list(noise.shape)] or options.rule != 1 or options.antithetic:
            raise ShapeError(
                f"noise must have the shape of the latents, {shapes}, with draws=1 and not antithetic, got {list(noise.shape)} "
                f"and draws={options.rule}"
            )
    seed = _Seed().many(options)
    if not isinstance(seed, int) and len(seed) != len(subject):
        raise ShapeError(f"{len(subject)} candidates need one seed or {len(subject)}, got {len(seed)}")
    candidates = Candidates(subject.parts, subject.conditioning, seed, noise)
    return engine.asker.score(candidates, _ensemble(options))


def _state_question(engine: Engine, asked: Asked[ScoreRequest], subject: Subject) -> Question[Reward]:
    sigma = asked.tensors.get("sigma")
    if sigma is None or len(sigma) != len(subject):
        told = "none" if sigma is None else list(sigma.shape)
        raise ShapeError(f"noised_latents need sigma [{len(subject)}], got {told}")
    if "noise" in asked.tensors:
        raise DataError("noised_latents are noised already: leave noise out")
    # By value: our own clients say all that they could say.
    fields = ScoreOptions.model_fields
    idle = [name for name in fields if name != "deadline_ms" and getattr(asked.request, name) != fields[name].default]
    if idle:
        raise DataError(f"noised_latents are noised already and read as they are: leave {', '.join(idle)} out")
    check_sigma(sigma)
    state = NoisedState(subject.parts[0].latents, sigma.to(engine.model.device))
    return engine.asker.state(state, subject.conditioning)


def _ensemble(options: ScoreOptions) -> NoiseEnsemble:
    return NoiseEnsemble(options.sigmas, options.rule, options.fusion, options.antithetic)


def _one_prompt(subject: Subject) -> Conditioning:
    if len(subject.conditioning) != 1:
        raise ShapeError(f"candidates to be compared have one prompt, got {len(subject.conditioning)}")
    return subject.conditioning


class _Seed:
    """The seed of a request, which the reply names.

    Attributes:
        value: once it is known.
    """

    def __init__(self) -> None:
        self.value: int | None = None

    def one(self, options: ScoreOptions) -> int:
        """For candidates that meet the same noise.

        Raises:
            ValueRangeError: several were given.
        """
        seed = self.many(options)
        if not isinstance(seed, int):
            raise ValueRangeError(f"candidates to be compared meet the same noise, which has one seed; got {len(seed)}")
        self.value = seed
        return seed

    def many(self, options: ScoreOptions) -> int | tuple[int, ...]:
        """For candidates that are scored apart."""
        return fresh_seed() if options.seed is None else options.seed
