"""Orders: the same, reversed, tied, and by group."""

import math

import pytest
import torch

from dina_lrm.errors import ShapeError
from dina_lrm.metrics import kendall_tau, kendall_tau_by_group


def test_same_and_reversed():
    a = torch.tensor([0.1, 0.7, 0.3, 0.9])
    assert kendall_tau(a, a) == 1.0
    assert kendall_tau(a, -a) == -1.0
    assert kendall_tau(a, a.exp()) == 1.0


def test_against_scipy_with_ties():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 5, (40,), generator=generator).float()
    b = torch.randint(0, 5, (40,), generator=generator).float()
    stats = pytest.importorskip("scipy.stats")
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a.numpy(), b.numpy()).statistic)


def test_one_candidate_has_no_order():
    assert math.isnan(kendall_tau(torch.ones(1), torch.ones(1)))


def test_groups_are_never_compared():
    a = torch.tensor([1.0, 2.0, 20.0, 10.0])
    b = torch.tensor([5.0, 6.0, 1.0, 0.0])
    assert kendall_tau_by_group(a, b, torch.tensor([0, 0, 1, 1])).tolist() == [1.0, 1.0]


def test_the_unknown_is_left_out():
    found = kendall_tau_by_group(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, torch.nan, 0.0]), torch.zeros(3, dtype=torch.int64)
    )
    assert found.tolist() == [-1.0]
    assert len(kendall_tau_by_group(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))) == 0


def test_bad_input():
    with pytest.raises(ShapeError):
        kendall_tau(torch.zeros(2), torch.zeros(3))
