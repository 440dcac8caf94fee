"""Accuracy: the ties are said, and it does not matter which side is called chosen."""

import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics import pair_credit


def test_right_wrong_and_half():
    found = pair_credit(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1.0, 0.8, 0.6]))
    assert found.credit.tolist() == [1.0, 0.0, 0.5]
    assert found.accuracy == 0.5
    assert found.predicted_ties == 1


def test_a_tie_of_votes_is_left_out_and_counted():
    found = pair_credit(torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 0.5, 0.5]))
    assert found.accuracy == 1.0
    assert found.vote_ties == 2
    assert found.predicted_ties == 0
    assert found.credit[1].isnan()


def test_swapping_the_sides_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(50, generator=generator)
    target = torch.randint(0, 10, (50,), generator=generator) / 9
    torch.testing.assert_close(
        pair_credit(margin, target).credit, pair_credit(-margin, 1 - target).credit, equal_nan=True
    )


def test_negating_the_margin_turns_right_into_wrong():
    margin, target = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.9, 0.1, 0.7])
    assert torch.equal(pair_credit(margin, target).credit, 1 - pair_credit(-margin, target).credit)


def test_no_decided_pair_has_no_accuracy():
    found = pair_credit(torch.tensor([1.0]), torch.tensor([0.5]))
    assert found.accuracy != found.accuracy


def test_bad_input():
    with pytest.raises(ShapeError, match="both be"):
        pair_credit(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError):
        pair_credit(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueRangeError, match="not finite"):
        pair_credit(torch.tensor([torch.nan]), torch.ones(1))
    with pytest.raises(ValueRangeError, match="target"):
        pair_credit(torch.ones(1), torch.tensor([1.2]))
