"""The budget: a control differs from the model in one thing only."""

from pathlib import Path

import pytest

from dina_lrm.demo.settings import CONTROLS, FAST, FULL, HEADLINE, RULES, RUNS, train_config
from dina_lrm.errors import InputError


def config(run, num_blocks=8, budget=FULL):
    return train_config(Path("world"), Path("out"), RUNS[run], budget, num_blocks, seed=0)


def test_only_the_weights_differ_between_the_runs():
    main, control = (config(name).model_dump() for name in ("main", "random"))
    assert {key for key in main if main[key] != control[key]} == {"initialise"}


@pytest.mark.parametrize("num_blocks", [2, 3, 6, 8, 24])
def test_taps_rise_to_the_last_block_that_returns_text(num_blocks):
    taps = config("main", num_blocks).backbone.image_taps
    assert list(taps) == sorted(set(taps))
    assert taps[-1] == num_blocks - 1


def test_a_single_block_has_nothing_to_tap():
    with pytest.raises(InputError, match="num_blocks=1"):
        config("main", 1)


def test_names_fit_together():
    assert HEADLINE in RULES
    assert {control.run for control in CONTROLS.values()} <= set(RUNS)
    assert not set(CONTROLS) & set(RULES)


def test_fast_is_less():
    assert FAST.num_steps < FULL.num_steps
    assert FAST.candidates == FULL.candidates
