"""The arena over HTTP."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import Field
from torch import Tensor

from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring.wire import WireReply, WireRequest
from dina_lrm.serve.arena.arena import Arena, ArenaStats, ShownPair
from dina_lrm.serve.arena.judge import CLIENT, EngineJudge
from dina_lrm.serve.arena.store import AlreadyVotedError, Choice
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.refusals import Refusal

VOTER = r"^[A-Za-z0-9._-]{0,64}$"
Voter = Annotated[str, Query(pattern=VOTER, description="A name that the voter keeps; empty for none.")]
PART = 2**20  # bytes of an archive that are sent at once
PRIVATE_FOREVER = "private, max-age=31536000, immutable"  # a picture's name says which picture it is


class VoteRequest(WireRequest):
    """`POST /v1/arena/votes`.

    Attributes:
        pair: the ticket of the pair.
        choice: "left", "right", "tie" or "skip".
        voter: the name under which the pair was asked for.
    """

    pair: str = Field(min_length=1, max_length=128)
    choice: Choice
    voter: str = Field("", pattern=VOTER)


class VoteReply(WireReply):
    """The vote is on the disk.

    Attributes:
        recorded: False if the same answer stood there already.
        answered: how many answers this voter has given; null for voters without a name.
    """

    recorded: bool
    answered: int | None


def arena_router(arena: Arena, pool: ModelPool) -> APIRouter:
    """Routes of an arena whose judge is the pool's default model.

    Args:
        arena: opened; it is given the judge.
        pool: of models.
    """
    settings = arena.settings
    arena.judge = EngineJudge(pool, arena.source, NoiseEnsemble(settings.sigmas, settings.draws), settings.seed)
    exporting = asyncio.Lock()
    router = APIRouter(prefix="/v1/arena", tags=["arena"])

    @router.get("/pair")
    async def pair(voter: Voter = "") -> ShownPair:
        """Two pictures for one prompt, which of them where a matter of chance."""
        shown = await asyncio.to_thread(arena.next_pair, voter)
        arena.look_ahead()
        return shown

    @router.post("/votes")
    async def votes(request: VoteRequest) -> VoteReply:
        """Answer a pair. Sending the same answer again changes nothing; another answer is refused with 409."""
        try:
            recorded = await asyncio.to_thread(arena.vote, request.pair, request.choice, request.voter)
        except AlreadyVotedError as error:
            raise Refusal(409, "already_voted", str(error)) from error
        arena.look_ahead()
        answered = await asyncio.to_thread(arena.store.count, request.voter) if request.voter else None
        return VoteReply(recorded=recorded, answered=answered)

    @router.get("/stats")
    async def stats(voter: Voter = "") -> ArenaStats:
        """Votes so far, and how often voters and model chose alike."""
        arena.look_ahead()
        return await asyncio.to_thread(arena.stats, voter)

    @router.get("/pictures/{name}", response_class=Response)
    async def picture(name: str) -> Response:
        """A picture of a pair."""
        found = await asyncio.to_thread(arena.picture, name)
        if found is None:
            raise Refusal(404, "not_found", "the arena has no such picture")
        headers = {"Cache-Control": PRIVATE_FOREVER, "X-Content-Type-Options": "nosniff"}
        return Response(found, media_type="image/webp", headers=headers)

    @router.get("/export", response_class=Response)
    async def export(format: Literal["zip", "json"] = "zip") -> Response:
        """All votes: a preference folder as a zip archive, or every vote as JSON."""
        if format == "json":
            parts = arena.export_json()
            return StreamingResponse(parts, media_type="application/json", headers=_download("arena-votes.json"))
        if exporting.locked():
            told = "another export is being made; ask again in a few seconds"
            raise Refusal(429, "busy", told, {"retry-after": "5"})
        async with exporting:
            archive = await _zipped(arena, pool)
        headers = {**_download("arena-votes.zip"), "Content-Length": str(archive.seek(0, io.SEEK_END))}
        return StreamingResponse(_parts(archive), media_type="application/zip", headers=headers)

    return router


def _download(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}


def _parts(archive: IO[bytes]) -> Iterator[bytes]:
    with archive:
        archive.seek(0)
        while part := archive.read(PART):
            yield part


async def _zipped(arena: Arena, pool: ModelPool) -> IO[bytes]:
    """The exported folder as one file without a name: however its sending ends, nothing is left on the disk."""
    latents = arena.source.latents(list(arena.source.prompt_of)[:1])
    loop = asyncio.get_running_loop()
    engine = pool.engine() if latents is None else None

    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        assert engine is not None
        call = engine.call(lambda model: model.encode_images(pictures), client=CLIENT)
        return asyncio.run_coroutine_threadsafe(call, loop).result()

    def write() -> IO[bytes]:
        with tempfile.TemporaryDirectory(prefix="dina-lrm-arena-") as place:
            folder = Path(place) / "arena-votes"
            backbone = {} if engine is None else engine.model.network.backbone.signature()
            arena.export(folder, encode if engine is not None else None, backbone)
            with ExitStack() as failing:
                file = failing.enter_context(tempfile.TemporaryFile())
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    for part in sorted(one for one in folder.rglob("*") if one.is_file()):
                        archive.write(part, Path(folder.name) / part.relative_to(folder))
                failing.pop_all()
            return file

    return await asyncio.to_thread(write)
