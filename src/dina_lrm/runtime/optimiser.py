"""What an optimiser moves, by which rule, and how fast."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.optim import AdamW

from dina_lrm.config import Config
from dina_lrm.errors import ConfigError
from dina_lrm.runtime.schedule import SCHEDULES, ScheduleName, num_warm_up_steps

__all__ = ["OptimiserConfig", "ScheduleConfig", "build_optimiser", "trainable_parameters"]


class OptimiserConfig(Config):
    """AdamW.

    Attributes:
        learning_rate: of the head.
        adapter_learning_rate: of the adapter; None takes learning_rate.
        weight_decay: of matrices; vectors (norms, biases, embeddings) decay never.
        betas: of Adam's two averages.
        max_grad_norm: the global norm is clipped to this, once per optimiser step; None never clips.
    """

    learning_rate: float = Field(5e-5, gt=0)
    adapter_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = Field(1.0, gt=0)


class ScheduleConfig(Config):
    """The learning rate over optimiser steps.

    Attributes:
        kind: the shape after warm-up.
        warm_up: an integer is steps, a number below 1 a fraction of all steps.
    """

    kind: ScheduleName = "cosine"
    warm_up: int | float = 0.05

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        num_warm_up_steps(self.warm_up, 1)
        return self

    def check_fits(self, num_steps: int) -> None:
        """Refuse a warm-up that never ends.

        Raises:
            ConfigError: it is longer than the run.
        """
        if (warm_up := num_warm_up_steps(self.warm_up, num_steps)) > num_steps:
            raise ConfigError(
                f"schedule.warm_up takes {warm_up} steps and the run {num_steps}, so the full learning rate is never "
                "reached; warm up for fewer, or train for more"
            )

    def factor(self, step: int, num_steps: int) -> float:
        """What the learning rate is multiplied by at a step, from 0."""
        return SCHEDULES[self.kind](step, num_steps, num_warm_up_steps(self.warm_up, num_steps))


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
