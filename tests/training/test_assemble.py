from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.errors import ConfigError
from dina_lrm.runtime.optimiser import build_optimiser, trainable_parameters
from dina_lrm.training import OptimiserConfig, TrainConfig
from dina_lrm.training.assemble import load_network, random_base_seed

ADAPTED = BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=AdapterConfig(rank=2, alpha=4))


def test_adapter_and_head_are_trained_and_the_base_is_not(configure: Callable[..., TrainConfig]) -> None:
    names = trainable_parameters(load_network(configure(backbone=ADAPTED)))
    assert {name.split(".")[0] for name in names} == {"head", "backbone"}
    assert all("lora_" in name for name in names if name.startswith("backbone."))
    frozen = trainable_parameters(load_network(configure()))
    assert all(name.startswith("head.") for name in frozen)


def test_each_rate_and_decay_has_its_group(configure: Callable[..., TrainConfig]) -> None:
    parameters = trainable_parameters(load_network(configure(backbone=ADAPTED)))
    config = OptimiserConfig(learning_rate=1e-3, adapter_learning_rate=1e-4, weight_decay=0.1)
    optimiser = build_optimiser(parameters, config)
    found = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    assert len(found) == len(parameters)
    for name, parameter in parameters.items():
        group = found[id(parameter)]
        assert group["lr"] == group["initial_lr"] == (1e-4 if "lora_" in name else 1e-3)
        assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0)


def test_the_seed_decides_the_initial_weights(configure: Callable[..., TrainConfig]) -> None:
    one, same, other = (load_network(configure(backbone=ADAPTED, seed=seed)) for seed in (1, 1, 2))
    names = list(trainable_parameters(one))
    states = [network.state_dict() for network in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)
    assert any(not torch.equal(states[0][name], states[2][name]) for name in names)


def test_half_precision_is_never_trained() -> None:
    with pytest.raises(ConfigError, match="weight is trained and must be float32, got torch.bfloat16"):
        trainable_parameters(nn.Linear(2, 2).bfloat16())


def test_only_the_control_has_a_random_base(configure: Callable[..., TrainConfig]) -> None:
    assert random_base_seed(configure()) is None
    seeds = [random_base_seed(configure(initialise="random", seed=seed)) for seed in (0, 1)]
    assert None not in seeds
    assert seeds[0] != seeds[1]
