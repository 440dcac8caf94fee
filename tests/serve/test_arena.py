"""Pairs for voters, their votes, and what comes of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dina_lrm.errors import DataError
from dina_lrm.serve.arena import Arena, ArenaSettings, ShownPair
from dina_lrm.serve.arena.store import AlreadyVotedError
from dina_lrm.serve.arena.tickets import TicketError
from tests.serve.arena_folders import (
    NUM_PROMPTS,
    KnowingJudge,
    picture,
    picture_folder,
    preference_folder,
    prompt_of,
    webp,
)
from tests.serve.fake import in_loop

SETTINGS = ArenaSettings(random_share=0.4, seed=3, ahead=3)
NUM_PAIRS = NUM_PROMPTS * 6


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    preference_folder(tmp_path / "things")
    arena = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
    yield arena
    arena.close()


def sides(arena: Arena, shown: ShownPair) -> tuple[str, str]:
    """Which candidates were shown."""
    assert shown.left is not None and shown.right is not None
    left, right = arena._office.candidate(shown.left), arena._office.candidate(shown.right)
    assert left is not None and right is not None
    return left, right


def better(arena: Arena, shown: ShownPair) -> str:
    """The side whose candidate has the lower number."""
    left, right = sides(arena, shown)
    return "left" if left < right else "right"


def vote(arena: Arena, choice: str, voter: str = "ann") -> ShownPair:
    shown = arena.next_pair(voter)
    assert shown.pair is not None
    assert arena.vote(shown.pair, choice, voter)  # type: ignore[arg-type]
    return shown


async def see_all(arena: Arena) -> None:
    """Until every candidate that may be picked is scored."""
    while next(arena._to_come("knowing:1"), None) is not None:
        arena.look_ahead()
        await arena.settled()


def test_a_pair_is_two_pictures_of_one_prompt(arena: Arena) -> None:
    shown = arena.next_pair("ann")
    left, right = sides(arena, shown)
    assert left != right and arena.source.prompt_of[left] == arena.source.prompt_of[right] == shown.prompt
    assert shown.left is not None and arena.picture(shown.left) == webp(picture(*map(int, left.split("-"))))
    assert arena.picture(left) is None and arena.picture("") is None


def test_asking_again_is_no_way_to_another_pair(arena: Arena) -> None:
    first = arena.next_pair("ann")
    assert arena.next_pair("ann") == first
    assert arena.vote(first.pair or "", "skip", "ann")
    second = arena.next_pair("ann")
    assert second.pair != first.pair and second.answered == 1


@in_loop
async def test_a_pair_stays_while_more_is_scored(arena: Arena) -> None:
    arena.judge = KnowingJudge()
    first = [arena.next_pair(f"voter{number}") for number in range(8)]
    await see_all(arena)
    assert [arena.next_pair(f"voter{number}") for number in range(8)] == first


def test_who_has_no_name_gets_a_fresh_pair(arena: Arena) -> None:
    assert len({arena.next_pair("").pair for _ in range(8)}) == 8
    for _ in range(8):
        shown = arena.next_pair("")
        assert arena.vote(shown.pair or "", "tie", "")
    assert arena.stats().answers == 8


def test_every_pair_comes_once_and_then_there_is_none(arena: Arena) -> None:
    shown = [sides(arena, vote(arena, "skip")) for _ in range(NUM_PAIRS)]
    assert len({frozenset(pair) for pair in shown}) == NUM_PAIRS
    end = arena.next_pair("ann")
    assert end == ShownPair(pair=None, prompt=None, left=None, right=None, answered=NUM_PAIRS)
    assert arena.next_pair("bob").pair is not None


def test_sides_are_dealt_evenly_and_by_the_seed(arena: Arena) -> None:
    on_the_left = Counter(better(arena, vote(arena, "skip")) for _ in range(NUM_PAIRS))
    assert 0.3 < on_the_left["left"] / NUM_PAIRS < 0.7


def test_voters_are_shown_pairs_in_orders_of_their_own(arena: Arena) -> None:
    orders = [[sides(arena, vote(arena, "skip", voter)) for _ in range(6)] for voter in ("ann", "bob")]
    assert orders[0] != orders[1]


def test_the_same_arena_deals_the_same_pairs_again(arena: Arena, tmp_path: Path) -> None:
    dealt = [sides(arena, vote(arena, "skip")) for _ in range(8)]
    again = Arena.open(tmp_path / "things", tmp_path / "again.sqlite", SETTINGS)
    assert [sides(again, vote(again, "skip")) for _ in range(8)] == dealt
    again.close()


def test_the_first_answer_stands(arena: Arena) -> None:
    shown = arena.next_pair("ann")
    assert shown.pair is not None and arena.vote(shown.pair, "left", "ann")
    assert not arena.vote(shown.pair, "left", "ann")
    with pytest.raises(AlreadyVotedError):
        arena.vote(shown.pair, "right", "ann")
    assert [(one.voter, one.choice) for one in arena.store.votes()] == [("ann", "left")]


@pytest.mark.parametrize("voter", ["bob", "", "annx"])
def test_a_ticket_is_good_for_the_voter_who_got_it(arena: Arena, voter: str) -> None:
    ticket = arena.next_pair("ann").pair or ""
    with pytest.raises(TicketError, match="to this voter"):
        arena.vote(ticket, "left", voter)
    assert arena.vote(ticket, "left", "ann")


def test_a_pair_shown_before_a_restart_can_be_voted_on_after_it(arena: Arena, tmp_path: Path) -> None:
    shown = arena.next_pair("ann")
    pair = sides(arena, shown)
    arena.close()
    again = Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", SETTINGS)
    assert again.vote(shown.pair or "", "right", "ann")
    assert [(one.left, one.right) for one in again.store.votes()] == [pair]
    again.close()


def test_a_ticket_of_another_arena_is_refused(arena: Arena, tmp_path: Path) -> None:
    other = Arena.open(tmp_path / "things", tmp_path / "other.sqlite", SETTINGS)
    with pytest.raises(TicketError):
        arena.vote(other.next_pair("ann").pair or "", "left", "ann")
    other.close()


@in_loop
async def test_pairs_are_picked_where_the_judge_is_least_sure(arena: Arena) -> None:
    arena.judge = KnowingJudge()
    await see_all(arena)
    distance = {"random": [], "active": []}
    for _ in range(12):
        shown = vote(arena, "skip")
        left, right = sides(arena, shown)
        kind = arena.store.votes()[-1].sampling
        distance[kind].append(abs(int(left[-1]) - int(right[-1])))
    assert distance["active"] and set(distance["active"]) == {1}  # neighbours: the margin is smallest


@in_loop
async def test_a_pair_that_was_voted_on_gives_way_to_others(arena: Arena) -> None:
    arena.judge = KnowingJudge()
    await see_all(arena)
    for number in range(30):
        vote(arena, "left", f"voter{number}")
    active = [one for one in arena.store.votes() if one.sampling == "active"]
    most = Counter(frozenset((one.left, one.right)) for one in active).most_common(1)[0][1]
    assert most <= 3  # of about 18 in 21 pairs of neighbours


@in_loop
async def test_scoring_goes_ahead_a_little_at_a_time(arena: Arena) -> None:
    judge = arena.judge = KnowingJudge()
    arena.look_ahead()
    arena.look_ahead()
    await arena.settled()
    assert len(judge.asked) == SETTINGS.ahead == len(set(judge.asked))
    assert set(judge.asked) <= set(arena._prompts["active"])


@in_loop
async def test_what_was_voted_on_is_scored_first_and_to_the_end(arena: Arena) -> None:
    voted = {vote(arena, "left").prompt for _ in range(10)}
    judge = arena.judge = KnowingJudge()
    arena.look_ahead()
    await arena.settled()
    assert set(judge.asked) >= voted
    assert arena.stats().unscored == 0


@in_loop
async def test_a_judge_that_fails_stops_no_voter(arena: Arena) -> None:
    judge = arena.judge = KnowingJudge()
    judge.broken = True
    vote(arena, "left")
    arena.look_ahead()
    await arena.settled()
    vote(arena, "left")
    stats = arena.stats("ann")
    assert (stats.answers, stats.unscored, stats.random.share, stats.random.interval) == (2, 2, None, (0.0, 1.0))
    judge.broken = False
    arena.look_ahead()
    await arena.settled()
    assert arena.stats().unscored == 0


@in_loop
async def test_candidates_that_cannot_be_judged_are_set_aside_and_the_others_are_judged(arena: Arena, heard) -> None:
    for _ in range(NUM_PAIRS):
        vote(arena, "left")
    judge = arena.judge = KnowingJudge()
    prompts = sorted(arena.source.by_prompt)[: SETTINGS.ahead]  # as many as are scored at once, a bad picture in each
    judge.bad = {arena.source.by_prompt[prompt][1] for prompt in prompts}
    with heard.at_level(logging.WARNING):
        for _ in range(NUM_PROMPTS):
            arena.look_ahead()
            await arena.settled()
    assert set(arena.source.prompt_of) - arena.store.scored("knowing:1") == judge.bad
    assert sorted(record.getMessage().split("'")[1] for record in heard.records) == sorted(judge.bad)
    stats = arena.stats()
    assert (stats.unscored, stats.unscorable) == (0, 3 * len(judge.bad))
    assert stats.random.compared + stats.active.compared == NUM_PAIRS - 3 * len(judge.bad)
    for _ in range(NUM_PAIRS):  # the judge's choice passes over them, and they are shown all the same
        vote(arena, "skip", "bob")
    assert arena.next_pair("bob").pair is None


@in_loop
async def test_another_model_is_asked_anew(arena: Arena) -> None:
    vote(arena, "left")
    judge = arena.judge = KnowingJudge()
    arena.look_ahead()
    await arena.settled()
    judge.name = "knowing:2"
    assert arena.stats().unscored == 1
    arena.look_ahead()
    await arena.settled()
    assert arena.stats().unscored == 0
    judge.name = None
    assert arena.stats().model is None


@in_loop
async def test_agreement_is_counted_on_random_pairs(arena: Arena) -> None:
    for number in range(30):
        shown = arena.next_pair("ann")
        right_choice = better(arena, shown)
        wrong_choice = "left" if right_choice == "right" else "right"
        choice = "tie" if number % 10 == 0 else "skip" if number % 10 == 1 else right_choice
        vote(arena, wrong_choice if number % 10 == 2 else choice)
    arena.judge = KnowingJudge()
    arena.look_ahead()
    await arena.settled()
    stats = arena.stats("ann")
    votes = [one for one in arena.store.votes() if one.sampling == "random"]
    decided = [one for one in votes if one.choice in ("left", "right")]
    agreed = sum((one.left < one.right) == (one.choice == "left") for one in decided)
    random = stats.random
    assert (random.compared, random.agreed, random.share) == (len(decided), agreed, agreed / len(decided))
    assert random.interval[0] < agreed / len(decided) < random.interval[1]
    assert random.votes == len(decided) + random.ties and random.votes + random.skips == len(votes)
    assert random.expected is not None and 0.7 < random.expected < 0.9
    assert stats.random.votes + stats.active.votes == 27 and stats.random.skips + stats.active.skips == 3
    assert stats.mine == stats.random and stats.mine_active == stats.active
    assert (stats.voters, stats.prompts, stats.candidates, stats.model) == (1, 12, 48, "knowing")
    assert arena.stats("bob").mine is not None and arena.stats("bob").mine.votes == 0  # type: ignore[union-attr]


def test_prompts_of_random_pairs_are_never_picked_by_the_judge(arena: Arena) -> None:
    for _ in range(NUM_PAIRS):
        vote(arena, "left")
    prompts = {
        kind: {one.prompt for one in arena.store.votes() if one.sampling == kind} for kind in ("random", "active")
    }
    assert prompts["random"] and prompts["active"] and not prompts["random"] & prompts["active"]


def test_a_store_is_opened_with_what_it_was_made_with(arena: Arena, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made with random_share 0.4, seed 3"):
        Arena.open(tmp_path / "things", tmp_path / "arena.sqlite", ArenaSettings(random_share=0.4, seed=4))


def test_a_store_of_other_candidates_is_refused(arena: Arena, tmp_path: Path) -> None:
    vote(arena, "left")
    with pytest.raises(DataError, match="has votes on .*, which own lacks"):
        Arena.open(picture_folder(tmp_path / "own"), tmp_path / "arena.sqlite", SETTINGS)


def test_votes_become_a_preference_folder(arena: Arena, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nobody has voted"):
        arena.export(tmp_path / "out")
    vote(arena, "skip")
    with pytest.raises(DataError, match="nobody has voted"):
        arena.export(tmp_path / "out")
    for voter in ("ann", "bob", "eve"):
        for _ in range(20):
            vote(arena, "tie" if voter == "eve" else better(arena, arena.next_pair(voter)), voter)
    data = arena.export(tmp_path / "out")
    data.verify()
    assert set(data.splits) == {"train", "test"} and data.info["backbone"]["model"] == "none"
    votes = [one for one in arena.store.votes() if one.choice != "skip"]
    total = 0
    for split in data.splits:
        table = data.pairs(split)
        total += int(table.votes_chosen.sum() + table.votes_rejected.sum() + table.votes_tied.sum())
        assert (table.votes_rejected == 0).all()
        assert all(chosen < rejected for chosen, rejected in zip(table.chosen, table.rejected, strict=True))
    assert total == len(votes) == 60
    assert not set(data.pairs("train").prompt) & set(data.pairs("test").prompt)
    name = data.pairs("train").chosen[0]
    row = int(data.pairs("train").chosen_row[0])
    expected = arena.source.latents([name])
    assert expected is not None and torch.equal(data.latents([row]), expected)
    assert data.preview(name).size == (32, 32)
    assert data.pairs("train").chosen_utility[0] == -int(name[-1])


def test_votes_of_two_minds_are_added_up(arena: Arena, tmp_path: Path) -> None:
    shown = arena.next_pair("ann")
    showing = arena._office.read(shown.pair or "", "ann")
    for voter, choice in (("ann", "left"), ("bob", "right"), ("eve", "right"), ("joe", "tie")):
        arena.vote(arena._office.issue(showing, voter), choice, voter)  # type: ignore[arg-type]
    data = arena.export(tmp_path / "out")
    table = data.pairs(data.splits[0])
    left, right = sides(arena, shown)
    assert (table.chosen, table.rejected) == ([right], [left])
    assert (table.votes_chosen[0], table.votes_rejected[0], table.votes_tied[0]) == (2, 1, 1)


def test_pictures_are_encoded_for_the_export(tmp_path: Path) -> None:
    arena = Arena.open(picture_folder(tmp_path / "own"), tmp_path / "arena.sqlite", SETTINGS)
    shown = vote(arena, "left")
    with pytest.raises(DataError, match="no model is at hand"):
        arena.export(tmp_path / "out")
    sizes = []

    def encode(pictures):
        sizes.extend(one.size for one in pictures)
        return torch.full((len(pictures), 4, 2, 2), float(len(sizes)))

    data = arena.export(tmp_path / "out", encode, {"class": "none"})
    data.verify()
    assert sizes == [(32, 32)] * 2 and data.info["backbone"]["class"] == "none"
    assert data.pairs(data.splits[0]).chosen == [arena.source.public_name(sides(arena, shown)[0])]
    arena.close()


def test_an_export_holds_a_few_candidates_and_votes_at_a_time(arena: Arena, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dina_lrm.serve.arena.store.PAGE", 7)
    monkeypatch.setattr("dina_lrm.serve.arena.export.CHUNK", 3)
    for _ in range(NUM_PAIRS):
        vote(arena, "left")
    held = []
    whole = arena.source.latents
    monkeypatch.setattr(arena.source, "latents", lambda some: held.append(len(some)) or whole(some))
    data = arena.export(tmp_path / "out")
    data.verify()
    assert max(held) == 3 and sum(len(data.pairs(split)) for split in data.splits) == NUM_PAIRS
    table = data.candidates.select(["candidate", "latents_row"]).to_pylist()
    named = [row["candidate"] for row in table]
    assert torch.equal(data.latents([row["latents_row"] for row in table]), whole(named))
    parts = list(arena.export_json())
    assert len(parts) > NUM_PAIRS / 7
    rows = json.loads("".join(parts))["votes"]
    assert [row["pair"] for row in rows] == [one.pair for one in arena.store.votes()]


def test_an_export_tells_no_path(tmp_path: Path) -> None:
    deep = picture_folder(tmp_path / "own" / "deep", num_prompts=1)
    lines = json.loads((deep / "prompts.jsonl").read_text())
    images = ["deep/" + lines["images"][0], str(deep / lines["images"][1])]
    (tmp_path / "own" / "prompts.jsonl").write_text(json.dumps({**lines, "images": images}))
    arena = Arena.open(tmp_path / "own", tmp_path / "arena.sqlite", SETTINGS)
    vote(arena, "left")
    data = arena.export(tmp_path / "out", lambda pictures: torch.zeros(len(pictures), 4, 2, 2))
    arena_json = "".join(arena.export_json())
    told = json.dumps([data.candidates.drop(["preview"]).to_pylist(), vars(data.pairs(data.splits[0]))], default=str)
    for text in (told, arena_json):
        assert "0-0.png" in text and "deep" not in text and str(tmp_path.parent.name) not in text
    arena.close()


def test_pictures_of_several_shapes_fill_no_folder(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "own", num_prompts=1, sides=(32, 64, 96))
    arena = Arena.open(folder, tmp_path / "arena.sqlite", SETTINGS)
    vote(arena, "left")
    with pytest.raises(DataError, match="latents of several shapes"):
        arena.export(tmp_path / "out", lambda pictures: torch.zeros(1, 4, pictures[0].width, 2))
    assert not (tmp_path / "out").exists()
    arena.close()


def test_one_prompt_is_enough(tmp_path: Path) -> None:
    arena = Arena.open(picture_folder(tmp_path / "own", num_prompts=1), tmp_path / "arena.sqlite")
    assert {vote(arena, "left").prompt for _ in range(3)} == {prompt_of(0)}
    assert arena.next_pair("ann").pair is None
    arena.close()
