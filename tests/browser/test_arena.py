"""Voting in the arena, as a person does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dina_lrm.data import PreferenceData
from dina_lrm.serve.arena import Arena, ArenaSettings
from tests.browser.server import running
from tests.browser.waiting import until, until_text
from tests.serve.arena_folders import picture_folder, preference_folder
from tests.serve.serving import file_of, random_picture

SETTINGS = ArenaSettings(random_share=0.5, seed=1, draws=1)
Start = Callable[..., tuple[str, Arena]]


@pytest.fixture
def start(golden_model: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a server with an arena; give its address and the arena."""
    with ExitStack() as stack:

        def start(num_prompts: int = 12) -> tuple[str, Arena]:
            preference_folder(tmp_path / "things", (16, 8, 8), num_prompts)
            arena = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
            return stack.enter_context(running(lambda: golden_model, arena=arena)), arena

        yield start


def wait(page: Any, answered: int) -> None:
    """Until the pair after so many answers is there."""
    page.wait_for_selector("#pair:not([hidden])")
    until(
        page,
        f"document.getElementById('round').value === {answered}"
        " && document.getElementById('pair').getAttribute('aria-busy') === 'false'",
    )


def colours(page: Any) -> list[tuple[int, ...]]:
    """What is shown on the left and on the right."""
    found = []
    for side in ("left", "right"):
        until(page, f"document.getElementById('{side}').naturalWidth > 0")
        drawn = """one => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
            const context = canvas.getContext("2d");
            context.drawImage(one, 0, 0);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
        found.append(tuple(page.locator(f"#{side}").evaluate(drawn)))
    return found


def shown_colour(arena: Arena, candidate: str) -> tuple[int, ...]:
    return Image.open(io.BytesIO(arena.source.shown(candidate))).convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def test_a_round_by_keyboard(start, open_page) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena")
    keys = {"ArrowLeft": "left", "t": "tie", "ArrowRight": "right", "S": "skip"}
    wait(page, 0)
    for number, key in enumerate(list(keys) * 5):
        if number:
            wait(page, number)
        before = colours(page)
        prompt = page.inner_text("#pair-prompt")
        page.keyboard.press(key)
        if number < 19:
            wait(page, number + 1)
        else:
            page.wait_for_selector("#agreement:not([hidden])")
        vote = arena.store.votes()[-1]
        assert (vote.choice, vote.prompt) == (keys[key], prompt)
        assert before == [shown_colour(arena, vote.left), shown_colour(arena, vote.right)]
    assert len(arena.store.votes()) == 20 and len({vote.voter for vote in arena.store.votes()}) == 1
    assert page.evaluate("document.activeElement.id") == "agreement-title"
    until(page, "!document.getElementById('agreement-told').innerText.includes('not compared yet')")
    stats = arena.stats(arena.store.votes()[0].voter)
    assert stats.mine is not None
    rows = page.inner_text("#agreement-rows")
    assert f"of {stats.mine.compared} choices alike" in rows and "The model itself expects" in rows
    page.click("#more")
    wait(page, 0)


def test_pictures_and_buttons_are_clicked(start, open_page) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena", width=390, height=780, has_touch=True, is_mobile=True)
    wait(page, 0)
    page.tap("#right")
    wait(page, 1)
    page.tap(".choices [data-choice=tie]")
    wait(page, 2)
    page.tap("[data-choice=skip]")
    wait(page, 3)
    assert [vote.choice for vote in arena.store.votes()] == ["right", "tie", "skip"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_nothing_tells_which_picture_is_which(start, open_page) -> None:
    address, arena = start()
    page = open_page(address)
    bodies = []
    page.on("response", lambda one: bodies.append(one) if "/v1/arena/" in one.url else None)
    page.goto(f"{address}#arena")
    wait(page, 0)
    page.keyboard.press("ArrowLeft")
    wait(page, 1)
    vote = arena.store.votes()[0]
    told = " ".join(one.url + json.dumps(one.headers) for one in bodies)
    told += " ".join(one.text() for one in bodies if "pictures" not in one.url) + page.content()
    assert len(bodies) >= 6
    assert not any(word in told for word in (vote.left, vote.right, "random", "active", "utility", "probability"))


def test_a_vote_that_did_not_arrive_is_sent_again_and_counted_once(start, open_page) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena")
    wait(page, 0)
    prompt = page.inner_text("#pair-prompt")
    page.route("**/v1/arena/votes", lambda route: route.abort("connectionreset"))
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#pair-prompt") == prompt and not arena.store.votes()
    page.unroute("**/v1/arena/votes")

    def lose_the_answer(route: Any) -> None:
        route.fetch()
        route.abort("connectionreset")

    page.route("**/v1/arena/votes", lose_the_answer, times=1)
    page.click("#notice-again")
    until_text(page, "notice-again", "Try again now")
    page.wait_for_selector("#notice:not([hidden])")
    page.click("#notice-again")
    wait(page, 1)
    assert [vote.choice for vote in arena.store.votes()] == ["left"]


def test_whoever_dismisses_a_notice_may_choose_anew(start, open_page) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena")
    wait(page, 0)
    page.route("**/v1/arena/votes", lambda route: route.abort("connectionreset"), times=1)
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#notice:not([hidden])")
    page.click("#notice-stop")
    page.keyboard.press("ArrowRight")
    wait(page, 1)
    assert [vote.choice for vote in arena.store.votes()] == ["right"]


def test_an_answer_given_in_another_tab_stands(start, open_page) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena")
    wait(page, 0)
    voter = page.evaluate("localStorage.getItem('dina-lrm.voter')")
    arena.vote(arena.next_pair(voter).pair or "", "tie", voter)
    page.keyboard.press("ArrowLeft")
    wait(page, 1)
    assert [vote.choice for vote in arena.store.votes()] == ["tie"] and page.is_hidden("#notice")


def test_a_reload_loses_no_progress(start, open_page) -> None:
    address, _ = start()
    page = open_page(f"{address}#arena")
    wait(page, 0)
    page.keyboard.press("t")
    wait(page, 1)
    prompt = page.inner_text("#pair-prompt")
    page.reload()
    wait(page, 1)
    assert page.inner_text("#pair-prompt") == prompt
    page.click("#finish")
    page.wait_for_selector("#agreement:not([hidden])")


def test_at_the_end_there_is_no_pair_left(start, open_page) -> None:
    address, arena = start(num_prompts=1)
    page = open_page(f"{address}#arena")
    for number in range(6):
        wait(page, number)
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#agreement:not([hidden])")
    assert "seen every pair" in page.inner_text("#agreement-told") and page.is_hidden("#more")
    assert len(arena.store.votes()) == 6


def test_votes_are_exported(start, open_page, tmp_path: Path) -> None:
    address, arena = start()
    page = open_page(f"{address}#arena")
    for number in range(3):
        wait(page, number)
        page.keyboard.press("ArrowLeft")
    wait(page, 3)
    page.click("#finish")
    page.wait_for_selector("#agreement:not([hidden])")
    with page.expect_download() as download:
        page.click("#export-zip")
    assert download.value.suggested_filename == "arena-votes.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path / "out")
    data = PreferenceData.open(tmp_path / "out" / "arena-votes")
    data.verify()
    assert sum(len(data.pairs(split)) for split in data.splits) == 3
    with page.expect_download() as download:
        page.click("#export-json")
    votes = json.loads(Path(download.value.path()).read_text())["votes"]
    assert [vote["pair"] for vote in votes] == [vote.pair for vote in arena.store.votes()]


def test_an_export_without_votes_says_so(start, open_page) -> None:
    address, _ = start()
    page = open_page(f"{address}#arena")
    wait(page, 0)
    page.keyboard.press("s")
    wait(page, 1)
    page.click("#finish")
    page.click("#export-zip")
    page.wait_for_selector("#notice:not([hidden])")
    assert "obody has voted" in page.inner_text("#notice-text")


def test_pictures_of_ones_own_are_encoded_and_exported(golden_model, open_page, tmp_path: Path) -> None:
    arena = Arena.open(picture_folder(tmp_path / "own", sides=(64,)), tmp_path / "arena.sqlite", SETTINGS)
    with running(lambda: golden_model, arena=arena) as address:
        page = open_page(f"{address}#arena")
        wait(page, 0)
        page.keyboard.press("ArrowRight")
        wait(page, 1)
        page.click("#finish")
        page.wait_for_selector("#agreement:not([hidden])")
        until(page, "!document.getElementById('agreement-told').innerText.includes('not compared yet')")
        with page.expect_download() as download:
            page.click("#export-zip")
        with zipfile.ZipFile(download.value.path()) as archive:
            archive.extractall(tmp_path / "out")
    data = PreferenceData.open(tmp_path / "out" / "arena-votes")
    data.verify()
    assert data.info["backbone"]["class"] == "SD3Transformer2DModel"
    assert data.info["counts"]["candidates"] == 2


def test_a_picture_that_cannot_be_read_is_passed_over(golden_model, open_page, tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "own", num_prompts=1)
    whole = file_of(random_picture(1))
    (folder / "0-1.png").write_bytes(whole[: len(whole) // 2])
    arena = Arena.open(folder, tmp_path / "arena.sqlite", SETTINGS)
    with running(lambda: golden_model, arena=arena) as address:
        page = open_page(f"{address}#arena")
        wait(page, 0)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#agreement:not([hidden])")
        assert page.is_hidden("#notice") and "seen every pair" in page.inner_text("#agreement-told")
        assert len(arena.store.votes()) == 1


def test_a_model_that_does_not_judge_says_why(golden_model, open_page, tmp_path: Path) -> None:
    preference_folder(tmp_path / "things", (16, 8, 8), **{"class": "Other", "vae_scaling_factor": 0.5})
    arena = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
    with running(lambda: golden_model, arena=arena) as address:
        page = open_page(f"{address}#arena")
        until_text(page, "status", "tiny")
        wait(page, 0)
        page.keyboard.press("ArrowLeft")
        wait(page, 1)
        page.click("#finish")
        page.wait_for_selector("#agreement:not([hidden])")
        told = page.inner_text("#agreement-told")
        assert "does not judge these pictures: things holds latents of Other" in told and "still looking" not in told


def test_a_server_without_an_arena_says_how_to_have_one(plain, open_page) -> None:
    page = open_page(f"{plain}#arena")
    page.wait_for_selector("#arena-none:not([hidden])")
    assert "--arena FOLDER" in page.inner_text("#arena-none") and page.is_hidden("#notice")
    page.click("nav a >> text=Playground")
    page.wait_for_selector("#prompt")
    assert page.get_attribute("nav a >> text=Playground", "aria-current") == "page"
