from __future__ import annotations

import pytest

from dina_lrm.cli.options import DEFAULT_SIGMA, DEFAULT_TIE_BAND, Dtype, load_model, read_sigmas
from dina_lrm.errors import ValueRangeError
from dina_lrm.types import TIE_BAND


def test_one_level_an_ensemble_or_the_default() -> None:
    assert read_sigmas(None, None) == (DEFAULT_SIGMA,)
    assert read_sigmas(0.0, None) == (0.0,)
    assert read_sigmas(None, "0.2, 0.5,0.7") == (0.2, 0.5, 0.7)


@pytest.mark.parametrize(
    ("sigma", "ensemble", "says"),
    [
        (0.4, "0.2", "not both"),
        (1.5, None, r"\[0, 1\], got 1.5"),
        (None, "0.2,-1", r"\[0, 1\], got -1"),
        (None, "nan", r"\[0, 1\], got nan"),
        (None, "0.2;0.5", '"0.2;0.5"'),
        (None, "", "0.2,0.5,0.7"),
    ],
)
def test_other_levels_are_refused(sigma: float | None, ensemble: str | None, says: str) -> None:
    with pytest.raises(ValueRangeError, match=says):
        read_sigmas(sigma, ensemble)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ValueRangeError, match=f'"{device}"'):
        load_model("m", None, device, Dtype.FLOAT32)


def test_the_tie_band_is_that_of_python_which_help_must_not_import() -> None:
    assert DEFAULT_TIE_BAND == TIE_BAND
