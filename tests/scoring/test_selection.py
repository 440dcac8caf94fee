"""Who stays: the best of each prompt, never one that failed before one that did not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dina_lrm.errors import NoAnswerError, ShapeError, ValueRangeError, WorkError
from dina_lrm.scoring.selection import (
    Cut,
    due,
    effective_size,
    group_size_of,
    halving_schedule,
    judge_of,
    keep_best,
    random_judge,
    systematic,
)
from dina_lrm.types import Conditioning, NoisedState
from tests.adapters.fake import FakeModel

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("reward", "keep", "kept"),
    [
        ([1.0, 3.0, 2.0, 5.0, 4.0, 6.0], 2, [1, 2, 3, 5]),  # in the order in which they stood
        ([1.0, 3.0, 2.0, 5.0, 4.0, 6.0], 3, [0, 1, 2, 3, 4, 5]),
        ([2.0, 2.0, 2.0, 0.0, 1.0, 1.0], 1, [0, 4]),  # the first of equals
        ([NAN, -9.0, NAN, NAN, NAN, -9.0], 1, [1, 5]),
        ([INF, -9.0, -INF, 0.0, NAN, 1.0], 1, [1, 5]),
        ([NAN, -9.0, NAN, 1.0, NAN, -9.0], 2, [0, 1, 3, 5]),  # one that failed only where there is no other
    ],
)
def test_the_best_of_each_prompt_stay(reward, keep, kept) -> None:
    assert keep_best(torch.tensor(reward), 3, keep).tolist() == kept


def test_a_prompt_of_which_all_failed_is_an_error() -> None:
    with pytest.raises(WorkError, match="no sample of prompt 1 has a reward"):
        keep_best(torch.tensor([1.0, 2.0, NAN, INF]), 2, 1)
    with pytest.raises(WorkError, match="none of 2 samples has a weight"):
        systematic(torch.tensor([-INF, -INF]), torch.Generator())


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"whole groups of 2, got \[3\]"):
        keep_best(torch.zeros(3), 2, 1)
    with pytest.raises(ValueRangeError, match="of 2 samples of each prompt 1 to 2 can be kept, not 3"):
        keep_best(torch.zeros(4), 2, 3)
    with pytest.raises(ShapeError, match="5 samples cannot be shared evenly by 2 prompts"):
        group_size_of(5, 2)
    for sigma in (1.0, -0.1, NAN):
        with pytest.raises(ValueRangeError, match=r"sigma must lie in \[0, 1\)"):
            Cut(sigma, 1)
    with pytest.raises(ValueRangeError, match="1 sample of each prompt or more, got 0"):
        Cut(0.5, 0)


def test_cuts_are_due_at_the_first_state_at_or_below_their_level() -> None:
    cuts = [Cut(0.7, 4), Cut(0.5, 2), Cut(0.0, 1)]
    assert due(cuts, 0.71) == ([], cuts)
    assert due(cuts, 0.7 + 1e-7) == (cuts[:1], cuts[1:])  # a grid of float32
    assert due(cuts, 0.4) == (cuts[:2], cuts[2:])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.integers(0, 1000))
def test_resampling_gives_each_as_many_as_its_weight_says(log_weights, seed) -> None:
    values = torch.tensor([*log_weights, -INF], dtype=torch.float64)
    chosen = systematic(values, torch.Generator().manual_seed(seed))
    counts = torch.bincount(chosen, minlength=len(values)).double()
    expected = len(values) * values.softmax(dim=0)
    assert len(chosen) == len(values) and chosen.tolist() == sorted(chosen.tolist())
    assert bool(((counts - expected).abs() < 1 + 1e-9).all()) and counts[-1] == 0


def test_resampling_is_a_function_of_its_seed() -> None:
    weights = torch.tensor([0.3, 0.1, 0.0])
    drawn = {tuple(systematic(weights, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert len(drawn) > 1
    assert torch.equal(*(systematic(weights, torch.Generator().manual_seed(3)) for _ in range(2)))


def test_how_many_samples_weights_are_worth() -> None:
    assert effective_size(torch.zeros(5)) == pytest.approx(5)
    assert effective_size(torch.tensor([0.0, 0.0, -INF])) == pytest.approx(2)
    assert effective_size(torch.tensor([3.0]).log()) == 1
    assert effective_size(torch.tensor([-INF, -INF])) == 0


def test_halving() -> None:
    grid = torch.linspace(1, 0, 11)
    cuts = halving_schedule(grid, 16, 2)
    assert [cut.keep for cut in cuts] == [8, 4, 2]
    assert [cut.sigma for cut in cuts] == pytest.approx([0.8, 0.4, 0.0])
    assert [cut.keep for cut in halving_schedule(grid, 10, 3)] == [5, 3]
    assert halving_schedule(grid, 2, 1, first=0.55)[0].sigma == pytest.approx(0.5)
    with pytest.raises(ValueRangeError, match="the grid has 2 levels at or below 0.15"):
        halving_schedule(grid, 16, 1, first=0.15)
    with pytest.raises(ValueRangeError, match="start=2 and finish=2"):
        halving_schedule(grid, 2, 2)


class Choosy(FakeModel):
    """Cannot score states whose numbers are all below 0, nor a batch that holds one."""

    error: type[Exception] = WorkError

    def score_state(self, state, conditioning):
        if bool((state.noised_latents.flatten(1).mean(dim=1) < 0).any()):
            raise self.error("a state is below 0")
        return super().score_state(state, conditioning)


def states(*values: float, sigma: float = 0.5) -> NoisedState:
    latents = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    return NoisedState(latents, torch.full((len(values),), sigma))


TEXT = Conditioning(torch.tensor([0.0, 100.0]).view(2, 1, 1), None)
ROWS = torch.tensor([0, 1, 1])


def test_a_judge_reads_states_as_they_stand_under_their_own_prompts() -> None:
    model = FakeModel()
    judge = judge_of(model, TEXT, sigmas=(0.2, 0.6), draws=3, seed=7)
    assert judge(states(1.0, 2.0, 3.0), ROWS).tolist() == [10, 20, 30]
    assert model.calls[0]["conditioning"].prompt_embeds.flatten().tolist() == [0, 100, 100]
    finished = judge(states(1.0, 2.0, 3.0, sigma=0.0), ROWS)
    assert finished.tolist() == [10, 1020, 1030]
    assert {name: model.calls[1][name] for name in ("sigmas", "draws", "seed")} == dict(
        sigmas=(0.2, 0.6), draws=3, seed=7
    )
    judge_of(model, TEXT[:1])(states(1.0, 2.0, 3.0), torch.tensor([0, 0, 0]))
    assert len(model.calls[2]["conditioning"]) == 1


def test_what_cannot_be_judged_together_is_asked_alone() -> None:
    judge = judge_of(Choosy(), TEXT)
    found = judge(states(1.0, -2.0, 3.0), ROWS)
    assert found[[0, 2]].tolist() == [10, 30] and found[1].isnan()
    with pytest.raises(WorkError, match="below 0"):
        judge(states(-1.0, -2.0), ROWS[:2])
    with pytest.raises(WorkError, match="below 0"):
        judge(states(-1.0), ROWS[:1])


def test_who_does_not_answer_is_not_asked_again() -> None:
    model = Choosy()
    model.error = NoAnswerError
    with pytest.raises(NoAnswerError):
        judge_of(model, TEXT)(states(1.0, -2.0), ROWS[:2])
    assert not model.calls


def test_the_random_judge_looks_at_nothing() -> None:
    judges = [random_judge(torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(judges[0](states(1.0, 2.0), ROWS[:2]), judges[1](states(NAN, 5.0), ROWS[:2]))
