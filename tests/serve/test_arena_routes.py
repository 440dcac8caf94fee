"""The arena over HTTP, with the tiny model as its judge."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import threading
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from pydantic import SecretStr

from dina_lrm.data import PreferenceData
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.serve.app import create_app
from dina_lrm.serve.arena import Arena, ArenaSettings, EngineJudge
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings
from tests.serve.arena_folders import NUM_CANDIDATES, picture_folder, preference_folder, prompt_of
from tests.serve.fake import PATIENCE, in_loop, settle
from tests.serve.serving import error_of, file_of, random_picture

SHAPE = (16, 8, 8)
SETTINGS = ArenaSettings(random_share=0.5, seed=1, draws=2, sigmas=(0.3, 0.6))
KEY = "a-key-of-more-than-sixteen"


@asynccontextmanager
async def voting(
    arena: Arena, model: Any, settings: ServeSettings | None = None
) -> AsyncIterator[tuple[httpx2.AsyncClient, ModelPool]]:
    pool = ModelPool(Observer(), max_wait_ms=1.0)
    app = create_app(pool, settings, arena)
    async with app.router.lifespan_context(app):
        if model is not None:
            pool.add("tiny", model)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client, pool


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    """Closed by the app."""
    preference_folder(tmp_path / "things", SHAPE)
    return Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)


async def vote(client: httpx2.AsyncClient, choice: str, voter: str = "ann") -> dict[str, Any]:
    pair = (await client.get("/v1/arena/pair", params={"voter": voter})).json()
    answer = await client.post("/v1/arena/votes", json={"pair": pair["pair"], "choice": choice, "voter": voter})
    assert answer.status_code == 200, answer.text
    return {**pair, **answer.json()}


@in_loop
async def test_a_pair_its_pictures_and_a_vote(arena: Arena, golden_model) -> None:
    async with voting(arena, golden_model) as (client, _):
        pair = (await client.get("/v1/arena/pair?voter=ann")).json()
        assert set(pair) == {"pair", "prompt", "left", "right", "answered"} and pair["answered"] == 0
        for side in ("left", "right"):
            picture = await client.get(f"/v1/arena/pictures/{pair[side]}")
            assert picture.headers["content-type"] == "image/webp" and "immutable" in picture.headers["cache-control"]
            assert Image.open(io.BytesIO(picture.content)).size == (32, 32)
        answer = {"pair": pair["pair"], "choice": "left", "voter": "ann"}
        first = await client.post("/v1/arena/votes", json=answer)
        again = await client.post("/v1/arena/votes", json=answer)
        other = await client.post("/v1/arena/votes", json={**answer, "choice": "right"})
    assert first.json() == {"recorded": True, "answered": 1}
    assert again.json() == {"recorded": False, "answered": 1}
    assert error_of(other) == (409, "already_voted")


@in_loop
async def test_voters_without_a_name_are_not_taken_for_one(arena: Arena, golden_model) -> None:
    async with voting(arena, golden_model) as (client, _):
        for _ in range(4):
            told = await vote(client, "tie", "")
            assert told["recorded"] and told["answered"] is None
        assert (await client.get("/v1/arena/stats")).json()["answers"] == 4


@pytest.mark.parametrize(
    "body",
    [
        {"pair": "nothing", "choice": "left"},
        {"pair": "", "choice": "left"},
        {"pair": "x" * 5000, "choice": "left"},
        {"choice": "left"},
        {"pair": "TICKET"},
        {"pair": "TICKET", "choice": "both"},
        {"pair": "TICKET", "choice": "left", "voter": "a b"},
        {"pair": "TICKET", "choice": "left", "voter": "x" * 65},
        {"pair": "TICKET", "choice": "left", "voter": None},
        {"pair": "TICKET", "choice": "left", "model": "tiny"},
        ["TICKET", "left"],
    ],
)
@in_loop
async def test_what_is_no_vote_is_refused(arena: Arena, golden_model, body) -> None:
    async with voting(arena, golden_model) as (client, _):
        ticket = (await client.get("/v1/arena/pair?voter=ann")).json()["pair"]
        text = json.dumps(body).replace("TICKET", ticket)
        response = await client.post("/v1/arena/votes", content=text, headers={"content-type": "application/json"})
        assert error_of(response) == (422, "bad_input")
        assert (await client.get("/v1/arena/stats")).json()["answers"] == 0


@in_loop
async def test_a_page_of_another_site_cannot_vote(arena: Arena, golden_model) -> None:
    """What a form of another site may send without asking: plain text, whatever it holds."""
    async with voting(arena, golden_model) as (client, _):
        ticket = (await client.get("/v1/arena/pair?voter=ann")).json()["pair"]
        text = json.dumps({"pair": ticket, "choice": "left"})
        response = await client.post("/v1/arena/votes", content=text, headers={"content-type": "text/plain"})
        assert error_of(response)[0] in (415, 422)
        assert (await client.get("/v1/arena/stats")).json()["answers"] == 0


@pytest.mark.parametrize("path", ["pair?voter=a%20b", "stats?voter=%00", "export?format=exe"])
@in_loop
async def test_queries_that_are_none_are_refused(arena: Arena, golden_model, path: str) -> None:
    async with voting(arena, golden_model) as (client, _):
        assert error_of(await client.get(f"/v1/arena/{path}")) == (422, "bad_input")
        assert error_of(await client.get("/v1/arena/pictures/nothing")) == (404, "not_found")


@in_loop
async def test_a_locked_server_shows_nobody_its_pictures(arena: Arena, golden_model) -> None:
    async with voting(arena, golden_model, ServeSettings(api_keys=(SecretStr(KEY),))) as (client, _):
        for path in ("pair", "stats", "export", "pictures/x"):
            assert error_of(await client.get(f"/v1/arena/{path}"))[0] == 401
        response = await client.get("/v1/arena/pair", headers={"authorization": f"Bearer {KEY}"})
        assert response.status_code == 200


@in_loop
async def test_without_a_model_people_vote_all_the_same(arena: Arena) -> None:
    async with voting(arena, None) as (client, _):
        assert (await vote(client, "left"))["recorded"]
        stats = (await client.get("/v1/arena/stats?voter=ann")).json()
    assert stats["model"] is None and stats["mine"]["share"] is None


@in_loop
async def test_votes_are_compared_with_the_served_model(arena: Arena, golden_model) -> None:
    async with voting(arena, golden_model) as (client, _):
        for number in range(12):
            await vote(client, "left" if number % 2 else "right")
        await arena.settled()
        stats = (await client.get("/v1/arena/stats?voter=ann")).json()
        votes = arena.store.votes()
    assert stats["model"] == "tiny" and stats["unscored"] == 0 and stats["answers"] == 12
    agreed = 0
    for one in (vote for vote in votes if vote.sampling == "random"):
        latents = arena.source.latents([one.left, one.right])
        reward = golden_model.score(prompts=[one.prompt], latents=latents, sigmas=(0.3, 0.6), draws=2, seed=1)
        agreed += bool(reward.utility[0] > reward.utility[1]) == (one.choice == "left")
    assert stats["random"]["agreed"] == stats["mine"]["agreed"] == agreed
    assert stats["random"]["interval"][0] <= stats["random"]["share"] <= stats["random"]["interval"][1]


@in_loop
async def test_latents_of_another_space_are_not_judged_and_both_are_named(tmp_path: Path, golden_model, heard) -> None:
    preference_folder(tmp_path / "things", SHAPE, **{"class": "Other", "vae_scaling_factor": 0.5})
    arena = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
    with heard.at_level(logging.WARNING):
        async with voting(arena, golden_model) as (client, _):
            for _ in range(3):
                assert (await vote(client, "left"))["recorded"]
            await arena.settled()
            stats = (await client.get("/v1/arena/stats?voter=ann")).json()
            scored = arena.store._rows("SELECT COUNT(*) FROM scores")[0][0]
    assert stats["model"] is None and stats["answers"] == 3 and scored == 0
    for part in ("things holds latents of Other", "VAE scaling_factor 0.5", "SD3Transformer2DModel"):
        assert part in stats["objection"]
    assert str(golden_model.network.backbone.base) not in stats["objection"]
    assert len([one for one in heard.records if "does not judge" in one.getMessage()]) == 1


@in_loop
async def test_a_picture_that_cannot_be_read_gives_way_to_others(tmp_path: Path, golden_model) -> None:
    folder = picture_folder(tmp_path / "own", num_prompts=1)
    file = folder / "0-1.png"
    whole = file_of(random_picture(1))
    file.write_bytes(whole[: len(whole) // 2])
    arena = Arena.open(folder, tmp_path / "arena.sqlite", SETTINGS)
    async with voting(arena, None) as (client, _):
        seen = []
        for number in range(20):
            pair = (await client.get(f"/v1/arena/pair?voter=voter{number}")).json()
            pictures = [await client.get(f"/v1/arena/pictures/{pair[side]}") for side in ("left", "right")]
            seen.append([one.status_code for one in pictures])
            for lost in (one for one in pictures if one.status_code != 200):
                assert error_of(lost) == (422, "bad_input") and "own" not in lost.text and ".png" not in lost.text
                again = (await client.get(f"/v1/arena/pair?voter=voter{number}")).json()
                assert again["pair"] != pair["pair"]
    assert sum(one != [200, 200] for one in seen) == 1 and seen[-1] == [200, 200]


@in_loop
async def test_a_picture_that_cannot_be_opened_for_a_moment_is_not_set_aside(
    tmp_path: Path, golden_model, monkeypatch
) -> None:
    arena = Arena.open(
        picture_folder(tmp_path / "own", num_prompts=1, sides=(64,)), tmp_path / "arena.sqlite", SETTINGS
    )
    opened, left = Image.open, {"picture": 1, "judge": 1}

    def full(path: Any, *args: Any) -> Any:
        who = "judge" if arena._scoring else "picture"
        if left[who]:
            left[who] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *args)

    async with voting(arena, None) as (client, pool):
        pair = (await client.get("/v1/arena/pair?voter=ann")).json()
        with monkeypatch.context() as crowded:
            crowded.setattr(Image, "open", full)
            refused = await client.get(f"/v1/arena/pictures/{pair['left']}")
            assert error_of(refused) == (503, "unavailable") and refused.headers["retry-after"] == "1"
            assert (await client.get(f"/v1/arena/pictures/{pair['left']}")).status_code == 200
            assert (await client.get("/v1/arena/pair?voter=ann")).json() == pair
            pool.add("tiny", golden_model)
            await vote(client, "left")
            await arena.settled()
            await client.get("/v1/arena/stats")
            await arena.settled()
        stats = (await client.get("/v1/arena/stats")).json()
    assert left == {"picture": 0, "judge": 0} and (stats["unscored"], stats["unscorable"]) == (0, 0)


@in_loop
async def test_an_export_names_no_voter(arena: Arena) -> None:
    async with voting(arena, None) as (client, _):
        for voter in ("ann", "bob", "ann", ""):
            await vote(client, "left", voter)
        told = await client.get("/v1/arena/export?format=json")
        names = [one["voter"] for one in told.json()["votes"]]
        assert names[0] == names[2] != names[1] and names[3] == "" and "ann" not in names and "bob" not in names
        # What is told of a voter opens nothing: a ticket is good under the name itself.
        pair = (await client.get("/v1/arena/pair?voter=ann")).json()["pair"]
        answer = {"pair": pair, "choice": "left", "voter": names[0]}
        assert error_of(await client.post("/v1/arena/votes", json=answer)) == (422, "bad_input")


@in_loop
async def test_the_judge_gives_the_local_models_numbers(arena: Arena, golden_model) -> None:
    async with voting(arena, golden_model) as (_, pool):
        judge = EngineJudge(pool, arena.source, NoiseEnsemble((0.4,), 3), 7)
        prompt = prompt_of(2)
        found = await judge.utilities(prompt, arena.source.by_prompt[prompt])
        latents = arena.source.latents(arena.source.by_prompt[prompt])
        wanted = golden_model.score(prompts=[prompt], latents=latents, draws=3, seed=7)
        assert len(found) == NUM_CANDIDATES
        assert torch.allclose(torch.tensor(found), wanted.utility, atol=1e-5)
        margins = torch.tensor([-1.0, 0.0, 0.3], dtype=torch.float64)
        assert torch.equal(judge.probability(margins), golden_model.probability(margins, (0.4,)))
        first = judge.identity
        assert first is not None and first.startswith("tiny:")
        assert EngineJudge(pool, arena.source, NoiseEnsemble((0.5,), 3), 7).identity != first
        await pool.unload("tiny")
        assert judge.identity is None


@in_loop
async def test_an_arena_outlives_its_server(tmp_path: Path, golden_model) -> None:
    preference_folder(tmp_path / "things", SHAPE)
    for answered in (0, 3):
        arena = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
        async with voting(arena, golden_model) as (client, _):
            assert (await client.get("/v1/arena/pair?voter=ann")).json()["answered"] == answered
            for _ in range(3):
                await vote(client, "left")


@in_loop
async def test_a_server_that_ends_while_it_scores_ends_quietly(arena: Arena, golden_model, recwarn) -> None:
    async with voting(arena, golden_model) as (client, _):
        await vote(client, "left")
    await asyncio.sleep(0)
    assert not arena._scoring or all(task.done() for task in arena._scoring.values())


async def export_of(client: httpx2.AsyncClient, folder: Path) -> PreferenceData:
    response = await client.get("/v1/arena/export")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    assert "arena-votes.zip" in response.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        archive.extractall(folder)
    return PreferenceData.open(folder / "arena-votes")


@in_loop
async def test_votes_are_exported(arena: Arena, golden_model, tmp_path: Path) -> None:
    async with voting(arena, golden_model) as (client, _):
        assert error_of(await client.get("/v1/arena/export"))[0] == 422
        for _ in range(4):
            await vote(client, "left")
        data = await export_of(client, tmp_path / "out")
        data.verify()
        listed = (await client.get("/v1/arena/export?format=json")).json()
    assert sum(len(data.pairs(split)) for split in data.splits) == 4
    assert data.info["backbone"]["model"] == "none"
    assert listed["source"] == "things" and [one["choice"] for one in listed["votes"]] == ["left"] * 4


@in_loop
async def test_an_export_leaves_nothing_on_the_disk_whatever_part_of_it_is_asked_for(
    arena: Arena, tmp_path: Path, monkeypatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    async with voting(arena, None) as (client, _):
        await vote(client, "left")
        for wanted in ("junk", "bytes=9999999999-", "bytes=0-9"):
            response = await client.get("/v1/arena/export", headers={"range": wanted})
            assert response.status_code == 200 and zipfile.is_zipfile(io.BytesIO(response.content))
            assert int(response.headers["content-length"]) == len(response.content)
            assert list(place.iterdir()) == []


@in_loop
async def test_one_export_is_made_at_a_time(arena: Arena, monkeypatch) -> None:
    async with voting(arena, None) as (client, _):
        await vote(client, "left")
        begun, go_on, whole = threading.Event(), threading.Event(), arena.export

        def slow(*args):
            begun.set()
            assert go_on.wait(PATIENCE)
            return whole(*args)

        monkeypatch.setattr(arena, "export", slow)
        first = asyncio.create_task(client.get("/v1/arena/export"))
        await settle(begun.is_set)
        second = await client.get("/v1/arena/export")
        go_on.set()
        assert error_of(second) == (429, "busy") and int(second.headers["retry-after"]) > 0
        assert (await first).status_code == 200 and (await client.get("/v1/arena/export")).status_code == 200


@in_loop
async def test_pictures_are_encoded_by_the_served_model(tmp_path: Path, golden_model) -> None:
    arena = Arena.open(picture_folder(tmp_path / "own", sides=(64,)), tmp_path / "arena.sqlite", SETTINGS)
    async with voting(arena, golden_model) as (client, _):
        await vote(client, "right")
        data = await export_of(client, tmp_path / "out")
    data.verify()
    told = data.candidates["candidate"].to_pylist()[0]
    name = next(one for one in arena.source.prompt_of if arena.source.public_name(one) == told)
    wanted = golden_model.encode_images(arena.source.pictures([name]))
    assert torch.allclose(data.latents([0]), wanted, atol=2e-3)  # half precision on disk
    assert data.info["backbone"]["class"] == "SD3Transformer2DModel"


@in_loop
async def test_pictures_without_a_model_wait_for_one(tmp_path: Path) -> None:
    arena = Arena.open(picture_folder(tmp_path / "own"), tmp_path / "arena.sqlite", SETTINGS)
    async with voting(arena, None) as (client, _):
        await vote(client, "right")
        assert error_of(await client.get("/v1/arena/export"))[0] in (404, 503)
        assert len((await client.get("/v1/arena/export?format=json")).json()["votes"]) == 1
