"""Calibration keeps order, meets its levels and stays what it was where nothing was fitted."""

from __future__ import annotations

import math

import pytest
import torch

from dina_lrm import Calibration
from dina_lrm.errors import ConfigError, ValueRangeError
from dina_lrm.preference import BradleyTerry, CalibrationLevel, TabulatedThurstone, Thurstone
from dina_lrm.types import Spread

LEVELS = (
    CalibrationLevel(0.2, centre=1.0, spread=2.0, margin=Spread(0.1, 4.0)),
    CalibrationLevel(0.6, centre=3.0, spread=4.0, margin=Spread(0.3, math.inf)),
)
UTILITY = torch.linspace(-15, 15, 101, dtype=torch.float64)


def test_the_default_is_the_identity_and_two_numbers_are_a_line() -> None:
    assert torch.equal(Calibration()(UTILITY), UTILITY)
    assert torch.equal(Calibration(2.0, 1.0)(UTILITY, (0.4,)), 2 * UTILITY + 1)


def test_a_level_has_its_own_map_and_between_two_lies_their_mean() -> None:
    calibration = Calibration(levels=LEVELS)
    assert torch.equal(calibration(UTILITY, (0.2,)), (UTILITY - 1) / 2)
    assert torch.allclose(calibration(UTILITY, (0.4,)), (UTILITY - 2) / 3)
    assert torch.allclose(calibration(UTILITY, (0.2, 0.6)), (UTILITY - 2) / 3)
    assert torch.equal(calibration(UTILITY, (0.0,)), calibration(UTILITY, (0.2,)))
    assert torch.equal(calibration(UTILITY, (1.0,)), calibration(UTILITY, (0.6,)))
    assert torch.equal(calibration(UTILITY), UTILITY)


@pytest.mark.parametrize("kind", ["affine", "logistic"])
@pytest.mark.parametrize("sigmas", [None, (0.1,), (0.2, 0.5, 0.7)])
def test_an_order_never_changes(kind: str, sigmas: tuple[float, ...] | None) -> None:
    reward = Calibration(kind=kind, levels=LEVELS)(UTILITY, sigmas)  # type: ignore[arg-type]
    assert (reward.diff() > 0).all()
    if kind == "logistic":
        assert ((reward > 0) & (reward < 1)).all()


def test_gradients_pass() -> None:
    utility = torch.ones(3, requires_grad=True)
    Calibration(levels=LEVELS)(utility, (0.2,)).sum().backward()
    assert utility.grad is not None and torch.allclose(utility.grad, torch.full((3,), 0.5))


def test_the_law_is_the_fitted_one_or_the_models_own() -> None:
    fitted = TabulatedThurstone((0.2,), (1.0,), (1.0,))
    assert Calibration(choice=fitted).law(Thurstone()) is fitted
    assert Calibration().law(BradleyTerry(margin=1.0)) == BradleyTerry()


def test_the_spread_of_margins_is_interpolated() -> None:
    calibration = Calibration(levels=LEVELS)
    assert calibration.margin_spread(0.2) == Spread(0.1, 4.0)
    assert calibration.margin_spread(0.6) == Spread(0.3, math.inf)
    between = calibration.margin_spread(0.4)
    assert between is not None and between.variance == pytest.approx(0.2) and between.dof == pytest.approx(8.0)
    assert Calibration().margin_spread(0.4) is None
    assert Calibration(levels=(LEVELS[0], CalibrationLevel(0.9, 0.0, 1.0))).margin_spread(0.2) is None


def test_what_would_turn_an_order_around_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="scale"):
        Calibration(scale=0.0)
    with pytest.raises(ValueRangeError, match="spread"):
        CalibrationLevel(0.1, 0.0, -1.0)
    with pytest.raises(ValueRangeError, match="ascending"):
        Calibration(levels=LEVELS[::-1])
    with pytest.raises(ConfigError, match="affine, logistic"):
        Calibration(kind="cubic")  # type: ignore[arg-type]
