"""From configuration to the things that train: network, parameters, optimiser."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW

from dina_lrm.backbones import load_backbone
from dina_lrm.errors import ConfigError
from dina_lrm.model import RewardNetwork, build_network
from dina_lrm.training.config import OptimiserConfig, TrainConfig
from dina_lrm.training.seeds import derive_seed

__all__ = ["build_optimiser", "load_network", "random_base_seed", "trainable_parameters"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def random_base_seed(config: TrainConfig) -> int | None:
    """The seed of the random base weights; None where they are the pretrained ones."""
    return derive_seed(config.seed, "base") if config.initialise == "random" else None


def load_network(config: TrainConfig, device: torch.device | str = "cpu") -> RewardNetwork:
    """A backbone with a fresh adapter and a fresh head, both a function of the seed and both float32."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "initial weights"))
        backbone = load_backbone(
            config.backbone,
            config.base,
            device=device,
            dtype=DTYPES[config.dtype],
            revision=config.base_revision,
            random_seed=random_base_seed(config),
        )
        network = build_network(backbone, config.head)
    if config.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    if config.compile:
        backbone.compile_blocks()
    return network


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimiser moves, by name.

    Raises:
        ConfigError: a parameter that is not float32: in half precision most updates at these learning rates round away.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"{name} is trained and must be float32, got {parameter.dtype}; use mixed_precision instead"
            )
    return parameters


def build_optimiser(parameters: dict[str, nn.Parameter], config: OptimiserConfig) -> AdamW:
    """AdamW with one group a learning rate and decay; each group remembers its `initial_lr`."""
    adapter_rate = config.adapter_learning_rate or config.learning_rate
    rates = {False: config.learning_rate, True: adapter_rate}
    groups = [
        {
            "params": [
                p for name, p in parameters.items() if ("lora_" in name) == is_adapter and (p.ndim == 2) == is_matrix
            ],
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for is_adapter, rate in rates.items()
        for is_matrix in (True, False)
    ]
    return AdamW([group for group in groups if group["params"]], betas=config.betas)
