"""Intervals: they hold the mean, know their clusters, and repeat with their seed."""

import math

import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics import cluster_index, clustered_mean, wilson_interval


def test_names_become_numbers_in_order_of_appearance():
    assert cluster_index(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_the_interval_holds_the_mean_and_repeats():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    clusters = torch.arange(200) // 4
    found = clustered_mean(values, clusters, seed=3)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.count, found.clusters) == (200, 50)
    assert clustered_mean(values, clusters, seed=3) == found
    assert clustered_mean(values, clusters, seed=4) != found


def test_it_has_the_width_of_the_normal_interval_when_every_value_is_its_own_cluster():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = clustered_mean(values, torch.arange(400), resamples=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_copies_within_a_cluster_add_no_certainty():
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    once = clustered_mean(values, torch.arange(30))
    often = clustered_mean(values.repeat_interleave(10), torch.arange(30).repeat_interleave(10))
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_numbers_of_clusters_may_have_gaps_and_nan_is_left_out():
    found = clustered_mean(torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([5, 7, 9]))
    assert (found.value, found.count, found.clusters) == (0.5, 2, 2)


def test_nothing_to_count():
    found = clustered_mean(torch.tensor([torch.nan]), torch.tensor([0]))
    assert math.isnan(found.value) and found.count == 0


def test_bad_input_of_the_bootstrap():
    with pytest.raises(ShapeError):
        clustered_mean(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueRangeError, match="level"):
        clustered_mean(torch.zeros(2), torch.zeros(2, dtype=torch.int64), level=1.0)
    with pytest.raises(ValueRangeError, match="resamples"):
        clustered_mean(torch.zeros(2), torch.zeros(2, dtype=torch.int64), resamples=1)


def test_wilson_against_the_textbook():
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_wilson_at_the_ends():
    assert wilson_interval(0, 10)[0] == pytest.approx(0)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueRangeError, match=r"\[0, 3\]"):
        wilson_interval(4, 3)
