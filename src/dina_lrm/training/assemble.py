"""From configuration to the network that trains."""

from __future__ import annotations

import torch

from dina_lrm.backbones import load_backbone
from dina_lrm.model import RewardNetwork, build_network
from dina_lrm.runtime.seeds import derive_seed
from dina_lrm.training.config import TrainConfig

__all__ = ["load_network", "random_base_seed"]

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
