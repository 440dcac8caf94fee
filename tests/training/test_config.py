from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from dina_lrm.config import apply_overrides
from dina_lrm.errors import ConfigError
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.noise import Beta, Constant, LogitNormal, Mode, Power, Stratified, Uniform
from dina_lrm.preference import BradleyTerry, Thurstone, fidelity, nll
from dina_lrm.training import LevelsConfig, ScheduleConfig, TrainConfig

Configure = Callable[..., TrainConfig]


def test_a_configuration_survives_json(configure: Configure) -> None:
    config = configure()
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "law"),
    [
        ({"kind": "uniform", "low": 0.2, "high": 0.8}, Uniform(0.2, 0.8)),
        ({"kind": "logit_normal", "mean": 0.5}, LogitNormal(0.5, 1.0)),
        ({"kind": "mode"}, Mode(1.29)),
        ({"kind": "constant", "sigma": 0.3}, Constant(0.3)),
        ({"kind": "power", "exponent": 3}, Power(3)),
        ({"kind": "beta", "a": 1, "b": 3}, Beta(1, 3)),
    ],
)
def test_every_law_of_levels_can_be_configured(values: dict[str, object], law: object) -> None:
    assert LevelsConfig.model_validate({"law": values, "stratified": False}).build() == law
    assert LevelsConfig.model_validate({"law": values}).build() == Stratified(law)


def test_what_is_built_is_what_was_configured(configure: Configure) -> None:
    config = configure()
    assert config.likelihood.build() == Thurstone(2.0, 0.05)
    assert config.build_objective() is fidelity
    other = apply_overrides(config, ["likelihood.kind=bradley_terry", "likelihood.margin=1", "objective=nll"])
    assert other.likelihood.build() == BradleyTerry(1.0)
    assert other.build_objective() is nll


def test_overrides_reach_the_inside(configure: Configure) -> None:
    changed = apply_overrides(
        configure(), ["head.kind=mean_pool", "optimiser.learning_rate=5e-5", "levels.law.kind=constant"]
    )
    assert isinstance(changed.head, MeanPoolHeadConfig)
    assert changed.optimiser.learning_rate == 5e-5
    assert isinstance(changed.levels.law.build(), Constant)


def test_an_unknown_key_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="ema_decay"):
        apply_overrides(configure(), ["ema_deacy=0.5"])


@pytest.mark.parametrize("length", [{}, {"num_steps": 3, "num_epochs": 1.0}])
def test_a_run_has_one_length(configure: Configure, length: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="one of num_steps and num_epochs"):
        configure(**{"num_steps": None, **length})


def test_epochs_become_steps(configure: Configure) -> None:
    config = configure(num_steps=None, num_epochs=1.5, gradient_accumulation_steps=2)
    assert config.total_steps(num_units=160, num_processes=1) == 30
    assert config.total_steps(num_units=160, num_processes=3) == 10
    assert config.total_steps(num_units=1, num_processes=1) == 1
    assert configure().total_steps(160, 3) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"ema_decay": 1.0},
        {"batch_size": 0},
        {"objective": "hinge"},
        {"optimiser": {"learning_rate": -1}},
        {"schedule": {"kind": "step"}},
        {"schedule": {"warm_up": 1.5}},
        {"levels": {"law": {"kind": "uniform", "low": 0.9, "high": 0.1}}},
        {"validation": {"sigmas": (0.4, 1.2)}},
    ],
)
def test_values_out_of_range_are_refused_when_written(configure: Configure, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        configure(**wrong)


def test_a_warm_up_that_never_ends_is_refused_when_the_steps_are_known() -> None:
    with pytest.raises(ConfigError, match="takes 11 steps and the run 10"):
        ScheduleConfig(warm_up=11).check_fits(10)
    ScheduleConfig(warm_up=10).check_fits(10)
    ScheduleConfig(warm_up=0.9).check_fits(1)
