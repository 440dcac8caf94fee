"""Which pair is shown: where a vote tells most, and some at random."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from dina_lrm.serve.arena.selection import expected_information, ordered, pairs_of, random_pair, set_apart, tally
from dina_lrm.serve.arena.store import Vote
from dina_lrm.serve.arena.tickets import Showing, TicketError, TicketOffice

PROMPTS = [f"prompt {number}" for number in range(1000)]


def information(probability: float, first: float = 0, second: float = 0, prior_votes: float = 2.0) -> float:
    tensors = (torch.tensor([value], dtype=torch.float64) for value in (probability, first, second))
    return float(expected_information(*tensors, prior_votes))


def entropy(share: float) -> float:
    return -sum(part * torch.tensor(part).log().item() for part in (share, 1 - share) if part > 0)


@pytest.mark.parametrize(("probability", "first", "second"), [(0.5, 0, 0), (0.8, 3, 1), (0.3, 0.5, 4.5)])
def test_information_is_the_integral_that_it_stands_for(probability: float, first: float, second: float) -> None:
    a, b = 2 * probability + first, 2 * (1 - probability) + second
    expected, _ = quad(lambda share: entropy(share) * beta.pdf(share, a, b), 0, 1)
    assert information(probability, first, second) == pytest.approx(entropy(a / (a + b)) - expected, abs=1e-6)


def test_a_pair_tells_most_where_the_model_is_unsure() -> None:
    told = [information(probability) for probability in (0.5, 0.6, 0.75, 0.9, 0.99)]
    assert told == sorted(told, reverse=True)


def test_a_pair_tells_less_with_every_vote() -> None:
    told = [information(0.5, votes, votes) for votes in (0, 1, 2, 5, 20)]
    assert told == sorted(told, reverse=True) and told[-1] > 0


@given(st.floats(0, 1), st.integers(0, 30), st.integers(0, 30))
def test_information_knows_no_sides_and_is_never_negative(probability: float, first: int, second: int) -> None:
    told = information(probability, first, second)
    assert told >= 0
    assert told == pytest.approx(information(1 - probability, second, first), abs=1e-9)


def test_a_share_of_the_prompts_is_set_apart_whatever_their_order() -> None:
    apart = set_apart(PROMPTS, 0.25, 0)
    assert 200 < len(apart) < 300
    assert set_apart(PROMPTS[::-1], 0.25, 0) == apart != set_apart(PROMPTS, 0.25, 1)
    assert set_apart(PROMPTS, 1.0, 0) == set(PROMPTS)


def test_adding_prompts_moves_no_other() -> None:
    few, many = set_apart(PROMPTS[:500], 0.25, 0), set_apart(PROMPTS, 0.25, 0)
    assert few == {prompt for prompt in many if prompt in PROMPTS[:500]}


def test_one_prompt_at_least_is_set_apart() -> None:
    assert len(set_apart(["only"], 0.01, 3)) == 1


def vote(left: str, right: str, choice: str) -> Vote:
    return Vote("ticket", "ann", "prompt", left, right, choice, "active", "now")  # type: ignore[arg-type]


def test_votes_count_whichever_way_round_the_pair_was_shown() -> None:
    votes = [vote("a", "b", "left"), vote("b", "a", "right"), vote("b", "a", "left"), vote("a", "b", "tie")]
    assert tally([*votes, vote("a", "c", "skip")]) == {("a", "b"): (2.5, 1.5)}


def test_a_random_pair_is_any_of_a_random_prompts_pairs() -> None:
    by_prompt = {"one": ("a", "b", "c"), "two": ("d", "e")}
    drawn = [random_pair(by_prompt, ["one", "two"], set(), random.Random(seed)) for seed in range(600)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert 240 < counts["d", "e"] < 360 and all(60 < counts[pair] < 140 for pair in pairs_of("abc"))


def test_no_pair_is_drawn_twice_and_at_last_none() -> None:
    by_prompt, seen = {"one": ("a", "b", "c")}, set()
    for seed in range(3):
        pair = random_pair(by_prompt, ["one"], seen, random.Random(seed))
        assert pair is not None and pair not in seen
        seen.add(pair)
    assert random_pair(by_prompt, ["one"], seen, random.Random(9)) is None
    assert ordered("b", "a") == ordered("a", "b") == ("a", "b")


@pytest.fixture
def office() -> TicketOffice:
    return TicketOffice("00" * 32, ["real-a", "generated-b"])


SHOWING = Showing("generated-b", "real-a", "active", b"12345678")


def test_a_ticket_stands_for_the_pair_as_it_was_shown(office: TicketOffice) -> None:
    assert office.read(office.issue(SHOWING, "ann"), "ann") == SHOWING
    again = TicketOffice("00" * 32, ["real-a", "generated-b", "more"])
    assert again.read(office.issue(SHOWING, "ann"), "ann") == SHOWING


def test_names_tell_nothing(office: TicketOffice) -> None:
    ticket = office.issue(SHOWING, "ann")
    assert "real" not in ticket + office.picture("real-a")
    assert office.candidate(office.picture("real-a")) == "real-a" and office.candidate("real-a") is None
    assert TicketOffice("11" * 32, ["real-a"]).picture("real-a") != office.picture("real-a")


def test_a_ticket_that_was_changed_is_refused(office: TicketOffice) -> None:
    ticket = office.issue(SHOWING, "ann")
    for place in range(len(ticket)):
        for other in "Aa_":
            changed = ticket[:place] + other + ticket[place + 1 :]
            if changed != ticket:
                with pytest.raises(TicketError):
                    office.read(changed, "ann")


@pytest.mark.parametrize("ticket", ["", "a", "====", "ü", "A" * 53, "A" * 54, "A" * 55, "../../etc/passwd", " "])
def test_what_is_no_ticket_is_refused(office: TicketOffice, ticket: str) -> None:
    with pytest.raises(TicketError, match="no ticket"):
        office.read(ticket, "ann")


@given(st.text(max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(TicketError):
        TicketOffice("00" * 32, ["a", "b"]).read(text, "ann")


def test_a_ticket_of_pictures_that_are_gone_is_refused(office: TicketOffice) -> None:
    with pytest.raises(TicketError, match="no longer"):
        TicketOffice("00" * 32, ["real-a"]).read(office.issue(SHOWING, "ann"), "ann")
