"""Votes are on the disk before anybody is told so, once each."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dina_lrm.errors import DataError, WorkError
from dina_lrm.serve.arena import Vote, VoteStore
from dina_lrm.serve.arena.store import AlreadyVotedError

VOTE = Vote("ticket", "ann", "a prompt", "one", "other", "left", "random", "2025-01-01T00:00:00.000+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoteStore]:
    store = VoteStore.open(tmp_path / "deep" / "arena.sqlite")
    yield store
    store.close()


def test_a_vote_comes_back_as_it_was(store: VoteStore) -> None:
    assert store.add(VOTE)
    assert store.votes() == [VOTE] and store.candidates() == {"one", "other"}


def test_the_same_answer_again_is_no_second_vote(store: VoteStore) -> None:
    assert store.add(VOTE)
    assert not store.add(replace(VOTE, at="later"))
    assert store.votes() == [VOTE]


def test_another_answer_to_the_same_pair_is_refused(store: VoteStore) -> None:
    store.add(VOTE)
    with pytest.raises(AlreadyVotedError, match="'left'"):
        store.add(replace(VOTE, choice="right"))
    assert store.votes() == [VOTE]


def test_another_voter_may_answer_the_same_pair(store: VoteStore) -> None:
    other = replace(VOTE, voter="bob", choice="right")
    assert store.add(VOTE) and store.add(other)
    assert store.votes(voter="bob") == [other] and store.count("bob") == 1 and store.count("eve") == 0


def test_votes_of_more_prompts_than_a_statement_takes(store: VoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dina_lrm.serve.arena.store.VARIABLES", 7)
    for number in range(40):
        store.add(replace(VOTE, pair=str(number), prompt=f"prompt {number % 20}"))
    found = store.votes(prompts=[f"prompt {number}" for number in range(15)])
    assert len(found) == 30 and store.votes(prompts=[]) == []


def test_the_file_refuses_an_answer_that_is_none(store: VoteStore) -> None:
    with pytest.raises(WorkError, match="CHECK"):
        store.add(replace(VOTE, choice="both"))  # type: ignore[arg-type]
    assert store.add(VOTE)


def test_threads_lose_no_vote(store: VoteStore) -> None:
    def vote(worker: int) -> None:
        for number in range(25):
            store.add(replace(VOTE, pair=f"{worker}-{number}"))

    threads = [threading.Thread(target=vote, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.votes()) == 200


def test_two_servers_may_share_the_file(store: VoteStore) -> None:
    other = VoteStore.open(store.path)
    store.add(VOTE)
    other.add(replace(VOTE, pair="another"))
    assert len(store.votes()) == len(other.votes()) == 2 and store.secret == other.secret
    other.close()


def test_a_vote_that_was_acknowledged_survives_a_kill(store: VoteStore) -> None:
    program = f"""
import os, signal
from dina_lrm.serve.arena.store import Vote, VoteStore
store = VoteStore.open({str(store.path)!r})
store.add(Vote("killed", "ann", "a prompt", "one", "other", "tie", "active", "now"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False)
    assert ran.returncode == -9
    assert [vote.pair for vote in store.votes()] == ["killed"]


def test_what_models_think_is_kept_by_model(store: VoteStore) -> None:
    store.add_utilities("m:1", {"one": 1.5, "other": -0.25})
    store.add_utilities("m:2", {"one": 9.0})
    assert store.utilities("m:1", ["one", "other", "third"]) == {"one": 1.5, "other": -0.25}
    assert store.scored("m:2") == {"one"} and store.scored("m:3") == set()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database, and longer than a header of one would be " * 50)
    with pytest.raises(DataError, match="no arena's store"):
        VoteStore.open(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="cannot be opened"):
        VoteStore.open(tmp_path)


def test_a_store_of_another_version_is_refused(store: VoteStore, tmp_path: Path) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE facts SET value = '7' WHERE name = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="schema version 7"):
        VoteStore.open(store.path)


def test_a_store_that_was_closed_says_so(tmp_path: Path) -> None:
    store = VoteStore.open(tmp_path / "arena.sqlite")
    store.close()
    with pytest.raises(WorkError, match="closed"):
        store.add(VOTE)
