"""What trainers ask in their own words: UniRL's `/score`, `/rewards` and Flow-Factory's `/compute`, `/health`.

Both send pictures and prompts and want one number each: the calibrated reward at the default level and seed, so that the
same picture always has the same reward. A failure is told as one and is never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from dina_lrm.errors import InputError, ShapeError, WorkError
from dina_lrm.scoring.wire import JSON_TYPE, MAX_SAMPLES, ScoreRequest, WireReply
from dina_lrm.serve.asked import Asked, read_json
from dina_lrm.serve.desk import Desk, all_of, check_samples, read_body, while_connected
from dina_lrm.serve.errors import DeadlineError, UnavailableError
from dina_lrm.serve.pictures import check_pixels, decode_base64
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.routes.health import status_of
from dina_lrm.serve.routes.replies import json_response, require_type, schema_of
from dina_lrm.serve.routes.scores import scored
from dina_lrm.serve.settings import ServeSettings

__all__ = ["trainers_router"]

R = TypeVar("R", bound=BaseModel)


class TrainerRequest(BaseModel):
    """Base of what trainers send; they send more than is read here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Turn(TrainerRequest):
    """One turn of UniRL's history.

    Attributes:
        text: the prompt.
        image_b64: the picture's file.
        video_b64: of a video, which is not scored here.
        video_path: the same.
    """

    text: str
    image_b64: str | None = None
    video_b64: str | None = None
    video_path: str | None = None


class RewardWanted(TrainerRequest):
    """One request of UniRL's batch.

    Attributes:
        history: turns, of which the last is scored.
        required_rewards: names of models.
    """

    history: Annotated[tuple[Turn, ...], FailFast(), Field(min_length=1, max_length=MAX_SAMPLES)]
    required_rewards: Annotated[tuple[str, ...], FailFast(), Field(min_length=1, max_length=16)]


class UniRlRequest(TrainerRequest):
    """UniRL's `POST /score`.

    Attributes:
        requests: scored apart from each other.
    """

    requests: Annotated[tuple[RewardWanted, ...], FailFast(), Field(min_length=1, max_length=MAX_SAMPLES)]


class UniRlReply(WireReply):
    """Its answer, one entry a request.

    Attributes:
        results: numbers by model, then by measure; each of our models has one, named as itself.
        errors: by model, where there is no number.
    """

    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]]


class FlowFactoryRequest(TrainerRequest):
    """Flow-Factory's `POST /compute`.

    Attributes:
        prompt: one a picture.
        image: files in base64.
        video: not scored here.
    """

    prompt: Annotated[tuple[str, ...], FailFast(), Field(min_length=1, max_length=MAX_SAMPLES)]
    image: Annotated[tuple[str, ...] | None, Field(max_length=MAX_SAMPLES)] = None
    video: Any = None


class FlowFactoryReply(WireReply):
    """Its answer.

    Attributes:
        rewards: one a picture.
    """

    rewards: list[float]


def trainers_router(desk: Desk) -> APIRouter:
    """Routes in trainers' words."""
    router = APIRouter(tags=["trainers"])

    @router.post("/score", response_model=UniRlReply, openapi_extra=_body(UniRlRequest))
    async def score(http: Request) -> Response:
        """UniRL: rewards of pictures by the models that each request names."""
        asked = await _read(desk, http, UniRlRequest)
        check_samples(sum(len(one.required_rewards) for one in asked.requests), desk.settings)
        groups: dict[str, list[int]] = {}
        for place, one in enumerate(asked.requests):
            for name in dict.fromkeys(one.required_rewards):
                groups.setdefault(name, []).append(place)
        turns = [one.history[-1] for one in asked.requests]
        work = all_of(_tried(desk, http, name, [turns[p] for p in places]) for name, places in groups.items())
        reply = UniRlReply(results=[{} for _ in turns], errors=[{} for _ in turns])
        for (name, places), found in zip(groups.items(), await while_connected(http.receive, work), strict=True):
            for place, outcome in zip(places, found, strict=True):
                if isinstance(outcome, str):
                    reply.errors[place][name] = outcome
                else:
                    reply.results[place][name] = {name: outcome}
        return json_response(reply, http=http)

    @router.post("/compute", response_model=FlowFactoryReply, openapi_extra=_body(FlowFactoryRequest))
    async def compute(http: Request) -> Response:
        """Flow-Factory: rewards of pictures under prompts, one each."""
        asked = await _read(desk, http, FlowFactoryRequest)
        if asked.image is None or asked.video is not None:
            raise ShapeError("this server scores pictures: send image, and video null")
        check_samples(len(asked.image), desk.settings)
        work = _rewards(desk, http, None, asked.prompt, asked.image)
        return json_response(FlowFactoryReply(rewards=await while_connected(http.receive, work)), http=http)

    @router.get("/health")
    async def health() -> dict[str, Any]:
        """Whether rewards can be asked for, by model."""
        status = status_of(desk).status
        if status != "ready":
            raise Refusal(503, status, f"the server is {status}", {"retry-after": "1"})
        return {"status": "ok", "rewards": {entry.name: [entry.status] for entry in desk.pool.entries}}

    @router.get("/rewards")
    async def rewards() -> dict[str, list[str]]:
        """Names of the models that answer."""
        return {"rewards": [entry.name for entry in desk.pool.entries if entry.status == "ready"]}

    return router


async def _read(desk: Desk, http: Request, kind: type[R]) -> R:
    """The words of a trainer."""
    await desk.admit(http)
    require_type(http, JSON_TYPE)
    return await desk.aside(read_json, kind, await read_body(http.receive))


async def _rewards(
    desk: Desk, http: Request, name: str | None, prompts: Sequence[str], images: Sequence[str]
) -> list[float]:
    """Rewards of pictures in base64 by one model, at its default level."""
    files = await desk.aside(_decoded, images)
    asked = Asked(ScoreRequest(prompts=tuple(prompts)), files)
    answer = await desk.answered(http, desk.pool.engine(name), asked, scored)
    return answer.value.reward.tolist()


async def _tried(desk: Desk, http: Request, name: str, turns: Sequence[Turn]) -> list[float | str]:
    """A reward a turn, or why there is none; one that fails leaves the others theirs."""
    try:
        images = [_picture(turn) for turn in turns]
        return [*await _rewards(desk, http, name, [turn.text for turn in turns], images)]
    except (UnavailableError, DeadlineError):
        raise
    except (InputError, WorkError) as error:
        if len(turns) == 1:
            return [f"{type(error).__name__}: {error}"]
    except Refusal as refusal:
        if len(turns) == 1:
            return [f"{refusal.kind}: {refusal.detail}"]
    await desk.aside(_check_together, turns, desk.settings)
    alone = await all_of(_tried(desk, http, name, [turn]) for turn in turns)
    return [one for found in alone for one in found]


def _picture(turn: Turn) -> str:
    if turn.image_b64 is None:
        raise ShapeError("this server scores pictures: the last turn must have image_b64")
    return turn.image_b64


def _check_together(turns: Sequence[Turn], settings: ServeSettings) -> None:
    """Refuse what is too much for one request, though it be asked for in parts."""
    files = []
    for turn in turns:
        with suppress(InputError):
            files.append(decode_base64(_picture(turn), 0))
    check_pixels(files, settings)


def _decoded(images: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(decode_base64(text, place) for place, text in enumerate(images))


def _body(words: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema_of(words)}}}}
