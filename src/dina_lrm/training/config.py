"""What a training run is: one strict, frozen configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dina_lrm.backbones import BackboneConfig
from dina_lrm.checkpoint import LikelihoodConfig, ThurstoneConfig
from dina_lrm.config import Config
from dina_lrm.heads import HeadConfig, QueryHeadConfig
from dina_lrm.noise import Beta, Constant, Levels, LogitNormal, Mode, Power, Stratified, Uniform
from dina_lrm.preference import Objective, fidelity, nll
from dina_lrm.runtime.accelerator import MixedPrecision
from dina_lrm.runtime.optimiser import OptimiserConfig, ScheduleConfig

__all__ = ["LevelsConfig", "OptimiserConfig", "ScheduleConfig", "TrainConfig", "ValidationConfig"]


class LawConfig(Config, ABC):
    """A distribution of `noise`, by its kind."""

    @abstractmethod
    def build(self) -> Levels:
        """The distribution itself; refuses parameters out of range."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self.build()
        return self


class UniformConfig(LawConfig):
    """`noise.Uniform`."""

    kind: Literal["uniform"] = "uniform"
    low: float = 0.0
    high: float = 1.0

    def build(self) -> Levels:
        return Uniform(self.low, self.high)


class LogitNormalConfig(LawConfig):
    """`noise.LogitNormal`."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def build(self) -> Levels:
        return LogitNormal(self.mean, self.std)


class ModeConfig(LawConfig):
    """`noise.Mode`."""

    kind: Literal["mode"] = "mode"
    scale: float = 1.29

    def build(self) -> Levels:
        return Mode(self.scale)


class ConstantConfig(LawConfig):
    """`noise.Constant`."""

    kind: Literal["constant"] = "constant"
    sigma: float = 0.4

    def build(self) -> Levels:
        return Constant(self.sigma)


class PowerConfig(LawConfig):
    """`noise.Power`."""

    kind: Literal["power"] = "power"
    exponent: float = 2.0

    def build(self) -> Levels:
        return Power(self.exponent)


class BetaConfig(LawConfig):
    """`noise.Beta`."""

    kind: Literal["beta"] = "beta"
    a: float = 2.0
    b: float = 2.0

    def build(self) -> Levels:
        return Beta(self.a, self.b)


Law = Annotated[
    UniformConfig | LogitNormalConfig | ModeConfig | ConstantConfig | PowerConfig | BetaConfig,
    Field(discriminator="kind"),
]


class LevelsConfig(Config):
    """The distribution over sigma.

    Attributes:
        law: which distribution.
        stratified: one level in each slice of equal mass, over all pairs of an optimiser step on all processes.
    """

    law: Law = UniformConfig()
    stratified: bool = True

    def build(self) -> Levels:
        """The distribution itself."""
        law = self.law.build()
        return Stratified(law) if self.stratified else law


class ValidationConfig(Config):
    """How the model is measured while it trains: always the same pairs, levels and noise.

    Attributes:
        split: of the preference folder.
        every: optimiser steps between two measurements; 0 measures never; otherwise the last step is measured too.
        num_pairs: at most so many, evenly spaced over the split.
        sigmas: each is measured apart.
        seed: of the noise.
        batch_size: pairs a forward.
    """

    split: str = "validation"
    every: int = Field(0, ge=0)
    num_pairs: int = Field(512, ge=1)
    sigmas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0.1, 0.4, 0.7), min_length=1)
    seed: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=1)


class TrainConfig(Config):
    """A whole run. Everything that changes what is learned stands here.

    Attributes:
        data: preference folder.
        base: diffusers pipeline folder or hub id.
        base_revision: of the hub repository; None takes its main branch.
        out: where checkpoints, metrics and the final model go.
        split: of the preference folder to learn from.
        backbone: what is kept of the base and what is read from it.
        initialise: "random" gives the same backbone with random weights: the control.
        dtype: of the frozen base weights; what is trained is always float32.
        head: features to utility.
        levels: the distribution over sigma.
        likelihood: the law of choice.
        objective: log-probability to loss.
        soft_labels: learn the share of votes; False learns the majority and leaves ties out of the loss.
        optimiser: AdamW.
        schedule: learning rate over steps.
        batch_size: pairs a process and micro step; prompts, where max_candidates is given.
        max_candidates: None learns from pairs on their own. A number learns from prompts: of each, all labelled pairs
            among at most so many candidates, each of which goes through the network once, under one sigma and noise.
        gradient_accumulation_steps: micro steps to an optimiser step.
        num_steps: optimiser steps; this or num_epochs.
        num_epochs: passes over the pairs or prompts, may be a fraction.
        ema_decay: of the averaged weights that are exported; 0 exports the raw ones.
        mixed_precision: autocast of the computation.
        gradient_checkpointing: keep no activations inside blocks and compute them again: slower, in much less memory.
        base_shards: processes that hold the frozen blocks together, a part each (FSDP2); 1 keeps them whole on each.
        compile: compile the backbone's blocks, which pays on a GPU after some hundred steps.
        device: "cpu" stays off an accelerator that is there.
        seed: of initialisation, order, levels and noise.
        validation: measuring on the way.
        save_every: optimiser steps between two checkpoints; 0 saves the last only.
        keep_last: so many checkpoints stay.
    """

    data: Path
    base: str
    base_revision: str | None = None
    out: Path
    split: str = "train"
    backbone: BackboneConfig = BackboneConfig()
    initialise: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    head: HeadConfig = QueryHeadConfig()
    levels: LevelsConfig = LevelsConfig()
    likelihood: LikelihoodConfig = ThurstoneConfig()
    objective: Literal["fidelity", "nll"] = "fidelity"
    soft_labels: bool = True
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch_size: int = Field(32, ge=1)
    max_candidates: int | None = Field(None, ge=2)
    gradient_accumulation_steps: int = Field(1, ge=1)
    num_steps: int | None = Field(None, ge=1)
    num_epochs: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    base_shards: int = Field(1, ge=1)
    compile: bool = False
    device: Literal["cpu"] | None = None
    seed: int = Field(0, ge=0)
    validation: ValidationConfig = ValidationConfig()
    save_every: int = Field(500, ge=0)
    keep_last: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError(
                f"give one of num_steps and num_epochs, got num_steps={self.num_steps} and num_epochs={self.num_epochs}"
            )
        return self

    @model_validator(mode="after")
    def _frozen_where_shared(self) -> Self:
        if self.base_shards > 1 and self.backbone.weights == "own":
            raise ValueError(
                "base_shards deals out frozen weights, and backbone.weights=own learns them all: set it to 1"
            )
        return self

    def total_steps(self, num_units: int, num_processes: int) -> int:
        """Optimiser steps of the run over so many pairs, or prompts."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.num_epochs is not None
        units_a_step = self.batch_size * self.gradient_accumulation_steps * num_processes
        return max(1, round(self.num_epochs * num_units / units_a_step))

    def build_objective(self) -> Objective:
        """Log-probability to loss."""
        return {"fidelity": fidelity, "nll": nll}[self.objective]
