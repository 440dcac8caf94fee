"""`/v1/score_latents`, `/v1/score_images`, `/v1/compare`, `/v1/rank`: all that can be asked of a model, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from dina_lrm.errors import DataError, ShapeError, ValueRangeError
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
from dina_lrm.serve.asked import Asked
from dina_lrm.serve.desk import Desk, ensemble_of, fresh_seed
from dina_lrm.serve.engine import Engine
from dina_lrm.serve.routes.replies import bodies, json_response, require_type
from dina_lrm.serve.subject import Subject
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward, check_sigma

__all__ = ["json_response", "score_question", "scores_router"]


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

        def question(engine: Engine, asked: Asked[CompareRequest], subject: Subject) -> Question[Comparison]:
            if len(subject) != 2:
                raise ShapeError(f"a comparison is of two candidates, got {len(subject)}")
            candidates = Candidates(subject.parts, _one_prompt(subject), seed.one(asked.request))
            return engine.asker.compare(candidates, ensemble_of(asked.request), asked.request.tie_band)

        answer = await desk.ask(http, CompareRequest, question)
        return json_response(ComparisonReply.of(answer.value, answer.model, answer.revision, seed.value))

    @router.post("/v1/rank", response_model=RankingReply, openapi_extra=bodies(RankRequest))
    async def rank(http: Request) -> Response:
        """Candidates of one prompt in order, best first."""
        seed = _Seed()

        def question(engine: Engine, asked: Asked[RankRequest], subject: Subject) -> Question[Ranking]:
            candidates = Candidates(subject.parts, _one_prompt(subject), seed.one(asked.request))
            return engine.asker.rank(candidates, ensemble_of(asked.request), asked.request.tie_band)

        answer = await desk.ask(http, RankRequest, question)
        return json_response(RankingReply.of(answer.value, answer.model, answer.revision, seed.value))

    return router


async def _score(desk: Desk, http: Request) -> Response:
    answer = await desk.ask(http, ScoreRequest, score_question)
    return json_response(RewardReply.of(answer.value, answer.model, answer.revision))


def score_question(engine: Engine, asked: Asked[ScoreRequest], subject: Subject) -> Question[Reward]:
    """What a request for scores asks.

    Args:
        engine: whose model is asked.
        asked: levels, draws, seeds, and noise if it is given.
        subject: candidates and prompts.

    Returns:
        The question.

    Raises:
        InputError: what was given does not fit together.
    """
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
                f"noise must have the shape of the latents, {shapes}, with draws 1 and not antithetic, got {list(noise.shape)}"
            )
    seed = _Seed().many(options)
    if not isinstance(seed, int) and len(seed) != len(subject):
        raise ShapeError(f"{len(subject)} candidates need one seed or {len(subject)}, got {len(seed)}")
    candidates = Candidates(subject.parts, subject.conditioning, seed, noise)
    return engine.asker.score(candidates, ensemble_of(options))


def _state_question(engine: Engine, asked: Asked[ScoreRequest], subject: Subject) -> Question[Reward]:
    sigma = asked.tensors.get("sigma")
    if sigma is None or len(sigma) != len(subject):
        told = "none" if sigma is None else list(sigma.shape)
        raise ShapeError(f"noised_latents need sigma [{len(subject)}], got {told}")
    if "noise" in asked.tensors:
        raise DataError("noised_latents are noised already: leave noise out")
    check_sigma(sigma)
    state = NoisedState(subject.parts[0].latents, sigma.to(engine.model.device))
    return engine.asker.state(state, subject.conditioning)


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
