"""Calibration: a truthful forecaster has no error, a boastful one does, and sides do not matter."""

import math

import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics import brier_score, calibration_error, calibration_floor, reliability, soft_nll


def test_a_forecaster_who_names_the_share_has_no_error():
    target = torch.arange(10) / 9
    assert reliability(target, target, bins=5).error == pytest.approx(0)


def test_the_boastful_are_found_out():
    probability = torch.full((100,), 0.95)
    target = torch.full((100,), 0.6)
    assert reliability(probability, target).error == pytest.approx(0.35)


def test_certain_and_always_wrong():
    found = reliability(torch.ones(4), torch.zeros(4), bins=2)
    assert found.error == 1.0
    assert found.share.tolist() == [0.0, 0.0]


def test_swapping_the_sides_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    probability, target = torch.rand(64, generator=generator), torch.rand(64, generator=generator)
    here, there = reliability(probability, target), reliability(1 - probability, 1 - target)
    assert torch.allclose(here.share, there.share) and torch.allclose(here.confidence, there.confidence)


def test_bins_hold_equally_many_and_grow_in_confidence():
    probability = torch.rand(103, generator=torch.Generator().manual_seed(1))
    found = reliability(probability, torch.ones(103), bins=10)
    assert found.count.sum() == 103
    assert found.count.max() - found.count.min() <= 1
    assert (found.confidence.diff() >= 0).all()
    assert len(found.members) == 103


def test_fewer_pairs_than_bins():
    assert len(reliability(torch.tensor([0.7, 0.2]), torch.tensor([1.0, 0.0]), bins=10).count) == 2


def test_the_interval_of_the_error_holds_it_and_narrows_with_more_clusters():
    generator = torch.Generator().manual_seed(2)
    widths = []
    for prompts in (20, 200):
        clusters = torch.arange(prompts).repeat_interleave(5)
        probability = torch.rand(len(clusters), generator=generator)
        target = (torch.rand(len(clusters), generator=generator) < probability).double()
        found = calibration_error(reliability(probability, target), clusters)
        assert found.low <= found.value <= found.high and (found.count, found.clusters) == (5 * prompts, prompts)
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_whoever_is_off_everywhere_is_off_in_every_resample():
    curve = reliability(torch.full((40,), 0.9), torch.full((40,), 0.6))
    found = calibration_error(curve, torch.arange(40) // 4 * 7)  # numbers with gaps
    assert (found.low, found.value, found.high) == pytest.approx((0.3, 0.3, 0.3))
    with pytest.raises(ShapeError, match="one a pair"):
        calibration_error(curve, torch.zeros(3))


def test_the_floor_is_what_a_truthful_forecaster_shows():
    generator = torch.Generator().manual_seed(3)
    errors, floors = [], []
    for _ in range(30):
        probability = 0.5 + torch.rand(400, generator=generator) / 2
        target = (torch.rand(400, generator=generator) < probability).double()
        curve = reliability(probability, target)
        errors.append(curve.error)
        floors.append(calibration_floor(curve, torch.arange(400) // 4))
    assert sum(errors) == pytest.approx(sum(floors), rel=0.15)
    boastful = reliability(torch.full((400,), 0.99), target)
    assert calibration_floor(boastful, torch.arange(400) // 4) < boastful.error / 2


def test_brier():
    assert brier_score(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0])).tolist() == [0.25, 0.0]


def test_log_loss_of_hard_and_soft_labels():
    half = torch.full((3,), math.log(0.5))
    assert soft_nll(half, half, torch.tensor([0.0, 0.4, 1.0])).tolist() == pytest.approx([math.log(2)] * 3)
    p = torch.tensor([0.8])
    least = soft_nll(p.log(), (1 - p).log(), p)
    other = soft_nll((p + 0.1).log(), (0.9 - p).log(), p)
    assert least < other


def test_an_impossible_side_without_votes_costs_nothing():
    loss = soft_nll(torch.zeros(1), torch.full((1,), -torch.inf), torch.ones(1))
    assert loss.tolist() == [0.0]


def test_bad_input():
    with pytest.raises(ShapeError, match="at least 1"):
        brier_score(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueRangeError, match="probability"):
        brier_score(torch.tensor([1.5]), torch.ones(1))
    with pytest.raises(ValueRangeError, match="bins"):
        reliability(torch.ones(1), torch.ones(1), bins=0)
    with pytest.raises(ShapeError):
        soft_nll(torch.zeros(2), torch.zeros(2), torch.zeros(1))
