"""The tabulated law is Thurstone's at each level, and says what averages are worth."""

from __future__ import annotations

import math

import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.preference import BradleyTerry, TabulatedThurstone, Thurstone

LAW = TabulatedThurstone((0.1, 0.5, 0.9), (0.4, 1.0, 2.0), (0.4, 0.8, 1.2), disagreement=0.5)
MARGIN = torch.linspace(-3, 3, 25, dtype=torch.float64)


def test_both_orders_exponentiate_to_one_and_swapping_mirrors() -> None:
    sigma = torch.full_like(MARGIN, 0.3)
    here, there = LAW.log_prob(MARGIN, -MARGIN, sigma), LAW.log_prob(-MARGIN, MARGIN, sigma)
    assert torch.allclose(here.exp() + there.exp(), torch.ones_like(MARGIN))
    assert torch.allclose(here, there.flip(0))


def test_a_table_of_thurstones_variances_is_thurstones_law() -> None:
    sigmas = (0.1, 0.5, 0.9)
    deviations = tuple(math.sqrt(2 * (2 * s * s + 0.05)) for s in sigmas)
    law = TabulatedThurstone(sigmas, deviations, deviations)
    for s in sigmas:
        sigma = torch.full_like(MARGIN, s)
        assert torch.allclose(law.log_prob(MARGIN, 0 * MARGIN, sigma), Thurstone().log_prob(MARGIN, 0 * MARGIN, sigma))
        assert torch.allclose(law.variance(sigma), Thurstone().variance(sigma))


def test_one_level_and_draw_is_its_own_entry() -> None:
    assert LAW.deviation((0.5,)) == pytest.approx(1.0)
    assert LAW.deviation((0.3,)) == pytest.approx(0.7)
    assert LAW.deviation((0.0,)) == pytest.approx(0.4) and LAW.deviation((1.0,)) == pytest.approx(2.0)
    sigma = torch.full_like(MARGIN, 0.5)
    assert torch.allclose(LAW.log_prob_of_mean(MARGIN, (0.5,)), LAW.log_prob(MARGIN, 0 * MARGIN, sigma))


def test_more_draws_make_a_margin_worth_more_down_to_what_is_settled() -> None:
    found = [LAW.deviation((0.9,), draws=draws) for draws in (1, 2, 4, 10**9)]
    assert found == pytest.approx([2.0, 1.6, 1.4, 1.2])


def test_levels_that_agree_add_nothing_and_levels_that_do_not_add_much() -> None:
    pair = (0.1, 0.9)
    agreeing = TabulatedThurstone(LAW.sigmas, LAW.single, LAW.settled)
    strangers = TabulatedThurstone(LAW.sigmas, LAW.single, LAW.settled, disagreement=1e9)
    assert agreeing.deviation(pair) == pytest.approx((0.4 + 2.0) / 2)
    assert strangers.deviation(pair) == pytest.approx((0.4**2 + 2.0**2) / 2 / 2.4)
    assert strangers.deviation(pair) < LAW.deviation(pair) < agreeing.deviation(pair)


def test_a_level_named_twice_is_one_level() -> None:
    assert LAW.deviation((0.5, 0.5)) == pytest.approx(LAW.deviation((0.5,)))


def test_weights_of_nothing_but_one_level() -> None:
    assert LAW.deviation((0.1, 0.9), weights=(0.0, 1.0)) == pytest.approx(2.0)


def test_laws_that_were_set_give_a_mean_the_mean_variance() -> None:
    margin = torch.tensor([0.7], dtype=torch.float64)
    variance = 0.25 * (2 * 0.2**2 + 0.05) + 0.75 * (2 * 0.6**2 + 0.05)
    expected = torch.special.log_ndtr(margin / math.sqrt(2 * variance))
    assert torch.allclose(Thurstone().log_prob_of_mean(margin, (0.2, 0.6), (0.25, 0.75)), expected)
    assert torch.allclose(BradleyTerry().log_prob_of_mean(margin, (0.2, 0.6)), torch.nn.functional.logsigmoid(margin))


@pytest.mark.parametrize(
    ("sigmas", "single", "settled"),
    [((0.5, 0.1), (1.0, 1.0), (1.0, 1.0)), ((0.1,), (1.0,), (1.1,)), ((0.1,), (0.0,), (0.0,))],
)
def test_tables_that_cannot_be(
    sigmas: tuple[float, ...], single: tuple[float, ...], settled: tuple[float, ...]
) -> None:
    with pytest.raises(ValueRangeError):
        TabulatedThurstone(sigmas, single, settled)


def test_shapes() -> None:
    with pytest.raises(ShapeError, match="one value a level"):
        TabulatedThurstone((0.1, 0.2), (1.0,), (1.0,))
    with pytest.raises(ShapeError, match="one shape"):
        LAW.log_prob(MARGIN, MARGIN)
