from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dina_lrm.data import (
    PairBatches,
    PairTable,
    PreferenceData,
    PromptGroups,
    collate,
    collate_groups,
    conditioning_by_prompt,
    unique_prompts,
)
from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.types import Conditioning


def encode(prompts: list[str]) -> dict[str, Conditioning]:
    """Each prompt as its length."""
    lengths = torch.tensor([float(len(p)) for p in prompts])
    return conditioning_by_prompt(prompts, Conditioning(lengths.view(-1, 1, 1), lengths.view(-1, 1)))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    batches, again = PairBatches(50, 8, seed=3), PairBatches(50, 8, seed=3)
    later = again.batch(20)
    for step in range(20):
        assert np.array_equal(batches.batch(step), again.batch(step))
    assert np.array_equal(batches.batch(20), later)


def test_each_epoch_shows_every_pair_once() -> None:
    batches = PairBatches(21, 4, seed=0)
    stream = np.concatenate([batches.batch(step) for step in range(21)])
    for epoch in range(4):
        assert sorted(stream[epoch * 21 : (epoch + 1) * 21]) == list(range(21))
    assert not np.array_equal(stream[:21], stream[21:42])


def test_seeds_share_no_epoch() -> None:
    first, second = PairBatches(40, 40, seed=0), PairBatches(40, 40, seed=1)
    assert not np.array_equal(first.batch(1), second.batch(0))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_would(world_size: int) -> None:
    whole = PairBatches(17, 4 * world_size, seed=5)
    ranks = [PairBatches(17, 4, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    for step in range(9):
        assert np.array_equal(np.concatenate([r.batch(step) for r in ranks]), whole.batch(step))


def test_batches_have_one_size_even_when_larger_than_the_data() -> None:
    batches = PairBatches(3, 8, seed=0)
    assert all(len(batches.batch(step)) == 8 for step in range(5))
    assert batches.steps_per_epoch == 3 / 8


@pytest.mark.parametrize(
    "values",
    [
        {"num_units": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"world_size": 0},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
    ],
)
def test_values_that_cannot_be(values: dict[str, int]) -> None:
    with pytest.raises(ValueRangeError, match="must be"):
        PairBatches(**{"num_units": 10, "batch_size": 2, "seed": 0, **values})


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="step must be 0 or more, got -1"):
        PairBatches(10, 2, seed=0).batch(-1)


def test_prompts_are_listed_once_in_order(tiny: PreferenceData) -> None:
    train, test = tiny.pairs("train"), tiny.pairs("test")
    assert unique_prompts(train) == list(dict.fromkeys(train.prompt))
    assert unique_prompts(train, test, train) == unique_prompts(train) + test.prompt


def test_collate_joins_latents_prompt_and_votes(tiny: PreferenceData) -> None:
    table = tiny.pairs("train")
    batch = collate(tiny, table, [3, 0], encode(unique_prompts(table)))
    assert batch.latents_chosen[:, 0, 0, 0].tolist() == [5, 0]
    assert batch.latents_rejected[:, 0, 0, 0].tolist() == [3, 1]
    assert batch.target.tolist() == [0.625, 1.0]
    assert batch.conditioning.pooled_prompt_embeds[:, 0].tolist() == [len(table.prompt[3]), len(table.prompt[0])]
    assert batch.latents_chosen.dtype == batch.target.dtype == torch.float32


def test_a_prompt_that_was_not_encoded(tiny: PreferenceData) -> None:
    table = tiny.pairs("train")
    with pytest.raises(DataError, match="was not encoded"):
        collate(tiny, table, [0], {})


def test_each_prompt_needs_its_conditioning() -> None:
    with pytest.raises(ShapeError, match="2 prompts"):
        conditioning_by_prompt(["a", "b"], Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1)))


@pytest.fixture
def many(tiny: PreferenceData) -> PairTable:
    """Six pairs of two prompts; the first has candidates 0 to 4 in a ring, the second 5 against 6."""
    table = tiny.pairs("train")[[0] * 6]
    return replace(
        table,
        prompt=["a", "b", "a", "a", "a", "a"],
        chosen_row=np.array([0, 5, 1, 2, 3, 4]),
        rejected_row=np.array([1, 6, 2, 3, 4, 0]),
        target=np.linspace(0, 1, 6, dtype=np.float32),
    )


def test_groups_are_the_pairs_of_a_prompt(many: PairTable) -> None:
    groups = PromptGroups.of(many, 8)
    assert [places.tolist() for places in groups.places] == [[0, 2, 3, 4, 5], [1]]
    rng = np.random.default_rng(0)
    assert groups.draw(0, rng).tolist() == [0, 2, 3, 4, 5]
    with pytest.raises(ValueRangeError, match="max_candidates must be 2 or more, got 1"):
        PromptGroups.of(many, 1)


@pytest.mark.parametrize("most", [2, 3, 4])
def test_a_large_group_is_cut_to_whole_pairs_among_few_candidates(many: PairTable, most: int) -> None:
    groups, seen = PromptGroups.of(many, most), set()
    for seed in range(40):
        places = groups.draw(0, np.random.default_rng(seed))
        candidates = {*many.chosen_row[places].tolist(), *many.rejected_row[places].tolist()}
        assert len(places) and len(candidates) <= most
        among = np.isin(many.chosen_row, list(candidates)) & np.isin(many.rejected_row, list(candidates))
        assert set(places.tolist()) == set(np.flatnonzero(among).tolist())
        seen |= set(places.tolist())
    assert seen == {0, 2, 3, 4, 5}


def test_a_batch_of_groups_holds_each_candidate_once(tiny: PreferenceData, many: PairTable) -> None:
    groups = PromptGroups.of(many, 8)
    batch = collate_groups(tiny, groups, [1, 0], encode(["a", "b"]), seed=0)
    assert torch.equal(batch.latents, tiny.latents([5, 6, 0, 1, 2, 3, 4]))
    assert batch.group.tolist() == [0, 0, 1, 1, 1, 1, 1] and batch.num_groups == 2
    assert batch.chosen.tolist() == [0, 2, 3, 4, 5, 6] and batch.rejected.tolist() == [1, 3, 4, 5, 6, 2]
    assert batch.target.tolist() == pytest.approx(many.target[[1, 0, 2, 3, 4, 5]].tolist())
    assert batch.conditioning.pooled_prompt_embeds.shape == (7, 1)
    with pytest.raises(DataError, match="'b' was not encoded"):
        collate_groups(tiny, groups, [1], encode(["a"]), seed=0)
