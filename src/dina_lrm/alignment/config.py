"""What a run of preference optimisation is: one strict, frozen configuration."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dina_lrm.alignment.algorithms import Algorithm, Draft, FlowDpo, FlowGrpo, Nft, Refl, StepDpo
from dina_lrm.alignment.rewards import Normalise
from dina_lrm.backbones import AdapterConfig
from dina_lrm.config import Config
from dina_lrm.errors import ConfigError
from dina_lrm.generation import CpsNoise, FlowNoise, StepNoise
from dina_lrm.noise import Fusion
from dina_lrm.runtime.optimiser import OptimiserConfig, ScheduleConfig

__all__ = [
    "AlignConfig",
    "DpoConfig",
    "DraftConfig",
    "EvaluationConfig",
    "FactoryPromptsConfig",
    "FactoryRewardConfig",
    "FlowGrpoConfig",
    "LatentRewardConfig",
    "MonitorConfig",
    "NftConfig",
    "PreferencePromptsConfig",
    "PromptFileConfig",
    "ReflConfig",
    "SamplerConfig",
    "ServerRewardConfig",
    "StepDpoConfig",
    "StepNoiseConfig",
    "made_by",
]

Level = Annotated[float, Field(ge=0, le=1)]


def made_by(make: str) -> Callable[..., Any]:
    """What `module:function` names; modules that lie in the working directory are found.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, colon, name = make.partition(":")
    try:
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)  # last: a file that lies here hides no package
        found = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise ConfigError(f"make={make!r} cannot be had: {error}") from error
    if not callable(found):
        raise ConfigError(f"make must be module:function, got {make!r}")
    return found


# Algorithms.


class AlgorithmConfig(Config, ABC):
    """An algorithm of `alignment.algorithms`, by its kind."""

    @abstractmethod
    def build(self) -> Algorithm:
        """The algorithm itself; refuses parameters out of range."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self.build()
        return self


class StepNoiseConfig(Config):
    """Noise in a sampler's steps.

    Attributes:
        kind: "flow" is Flow-GRPO's SDE, "cps" keeps the coefficients of the flow.
        level: a of either.
    """

    kind: Literal["flow", "cps"] = "flow"
    level: float = Field(0.7, gt=0, le=1)

    def build(self) -> StepNoise:
        """The noise itself."""
        return FlowNoise(self.level) if self.kind == "flow" else CpsNoise(self.level)


class ReflConfig(AlgorithmConfig):
    """`algorithms.Refl`."""

    kind: Literal["refl"] = "refl"
    late: float = 0.25
    kl: float = Field(0.0, ge=0)
    pretraining: float = Field(0.0, ge=0)

    def build(self) -> Algorithm:
        return Refl(self.late, self.kl, self.pretraining)


class DraftConfig(AlgorithmConfig):
    """`algorithms.Draft`."""

    kind: Literal["draft"] = "draft"
    last_steps: int = 1
    noisings: int = Field(0, ge=0)
    kl: float = Field(0.0, ge=0)

    def build(self) -> Algorithm:
        return Draft(self.last_steps, self.noisings, self.kl)


class FlowGrpoConfig(AlgorithmConfig):
    """`algorithms.FlowGrpo`."""

    kind: Literal["flow_grpo"] = "flow_grpo"
    group_size: int = Field(24, ge=2)
    noise: StepNoiseConfig = StepNoiseConfig()
    window: int | None = Field(None, ge=1)
    clip: float = Field(1e-4, gt=0)
    kl: float = Field(0.04, ge=0)
    spread: Literal["group", "batch"] = "group"
    advantage_limit: float = Field(5.0, gt=0)
    epochs: int = Field(1, ge=1)
    shared_noise: bool = False

    def build(self) -> Algorithm:
        return FlowGrpo(
            self.group_size,
            self.noise.build(),
            self.window,
            self.clip,
            self.kl,
            self.spread,
            self.advantage_limit,
            self.epochs,
            self.shared_noise,
        )


class NftConfig(AlgorithmConfig):
    """`algorithms.Nft`."""

    kind: Literal["nft"] = "nft"
    group_size: int = Field(24, ge=2)
    strength: float = Field(1.0, gt=0)
    kl: float = Field(1e-4, ge=0)
    decay: Literal[1, 2] = 1
    passes: int = Field(1, ge=1)
    noisings: int = Field(1, ge=1)
    advantage_limit: float = Field(5.0, gt=0)
    spread: Literal["group", "batch"] = "batch"

    def build(self) -> Algorithm:
        return Nft(
            self.group_size,
            self.strength,
            self.kl,
            self.decay,
            self.passes,
            self.advantage_limit,
            self.spread,
            self.noisings,
        )


class DpoConfig(AlgorithmConfig):
    """`algorithms.FlowDpo`."""

    kind: Literal["dpo"] = "dpo"
    group_size: int = Field(8, ge=2)
    strength: float = Field(500.0, gt=0)
    gap: float = Field(0.0, ge=0)
    passes: int = Field(1, ge=1)

    def build(self) -> Algorithm:
        return FlowDpo(self.group_size, self.strength, self.gap, self.passes)


class StepDpoConfig(AlgorithmConfig):
    """`algorithms.StepDpo`."""

    kind: Literal["step_dpo"] = "step_dpo"
    candidates: int = Field(4, ge=2)
    noise: StepNoiseConfig = StepNoiseConfig()
    strength: float = Field(500.0, gt=0)
    gap: float = Field(0.0, ge=0)
    band: tuple[Level, Level] = (0.2, 0.9)

    def build(self) -> Algorithm:
        return StepDpo(self.candidates, self.noise.build(), self.strength, self.gap, self.band)


AnyAlgorithm = Annotated[
    ReflConfig | DraftConfig | FlowGrpoConfig | NftConfig | DpoConfig | StepDpoConfig, Field(discriminator="kind")
]


# Rewards.


class _Judging(Config):
    """What every reward says.

    Attributes:
        name: in metrics.
        weight: in the mixture.
    """

    name: str = Field("reward", pattern=r"[A-Za-z0-9_-]+")
    weight: float = 1.0


class _ReadsLatents(_Judging):
    """How a latent reward is asked.

    Attributes:
        sigmas: noise levels.
        draws: noise tensors a level.
        fusion: as in `RewardFunction.score`.
        band: two levels between which one is drawn for every question, in place of `sigmas`.
    """

    sigmas: tuple[Level, ...] = Field((0.4,), min_length=1)
    draws: int = Field(1, ge=1)
    fusion: Fusion = "mean"
    band: tuple[Level, Level] | None = None


class LatentRewardConfig(_ReadsLatents):
    """A latent reward model in this process, on the weights of the generator's own base.

    Attributes:
        model: folder or hub id.
        revision: of its hub repository.
    """

    kind: Literal["latent"] = "latent"
    model: str
    revision: str | None = None


class ServerRewardConfig(_ReadsLatents):
    """A latent reward model behind HTTP (`dina-lrm serve`); no gradients.

    Attributes:
        url: of the server.
        model: its name there; None takes the server's first.
        api_key_variable: environment variable that holds the key.
        timeout: seconds that one question may take, with its retries.
    """

    kind: Literal["server"] = "server"
    url: str
    model: str | None = None
    api_key_variable: str | None = None
    timeout: float = Field(120.0, gt=0)


class FactoryRewardConfig(_ReadsLatents):
    """A reward of one's own: `make(**options)` gives it.

    Attributes:
        make: `module:function`.
        options: given to it.
        reads: "pixels": it is called with pixels `[b 3 y x]` in 0..1 and prompts; "latents": it is a `RewardFunction`.
        differentiable: of one that reads pixels: whether gradients are to pass.
    """

    kind: Literal["factory"] = "factory"
    make: str
    options: dict[str, Any] = {}
    reads: Literal["pixels", "latents"] = "pixels"
    differentiable: bool = True


AnyReward = Annotated[LatentRewardConfig | ServerRewardConfig | FactoryRewardConfig, Field(discriminator="kind")]


# Prompts.


class PromptFileConfig(Config):
    """Prompts in a file: a line each, or JSON lines with a `prompt`.

    Attributes:
        path: `.txt`, or `.jsonl`.
    """

    kind: Literal["file"] = "file"
    path: Path


class PreferencePromptsConfig(Config):
    """The prompts of a preference folder.

    Attributes:
        folder: of it.
        split: whose prompts.
    """

    kind: Literal["preferences"] = "preferences"
    folder: Path
    split: str = "train"


class FactoryPromptsConfig(Config):
    """`make(**options)` gives the prompts.

    Attributes:
        make: `module:function`.
        options: given to it.
    """

    kind: Literal["factory"] = "factory"
    make: str
    options: dict[str, Any] = {}


AnyPrompts = Annotated[PromptFileConfig | PreferencePromptsConfig | FactoryPromptsConfig, Field(discriminator="kind")]


class SamplerConfig(Config):
    """How samples are drawn.

    Attributes:
        num_steps: network evaluations, guidance counted once.
        guidance: scale of classifier-free guidance; 1 is none.
        height: of the pictures in pixels; None takes the base's own.
        width: the same.
    """

    num_steps: int = Field(10, ge=2)
    guidance: float = Field(4.5, ge=0)
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)


class EvaluationConfig(Config):
    """How the generator is measured while it learns: always the same prompts and noise, so that differences are paired.

    Attributes:
        every: updates between two measurements, the first before the first update; 0 measures never.
        prompts: held out; None takes those that are learned from.
        num_prompts: so many of them, evenly spaced.
        samples_per_prompt: two or more measure diversity.
        sampler: how; None takes the training's.
        judges: rewards that nothing is learned from: they tell whether the one that is learned from is still right.
        sigmas: the profile of latent rewards over noise levels; none measures no profile.
        draws: of latent rewards when they are measured; two or more tell their spread, one of the monitor's signs.
        grid: pictures in the grid of samples.
        batch_size: samples at once.
        seed: of noise.
    """

    every: int = Field(0, ge=0)
    prompts: AnyPrompts | None = None
    num_prompts: int = Field(64, ge=1)
    samples_per_prompt: int = Field(2, ge=1)
    sampler: SamplerConfig | None = None
    judges: tuple[AnyReward, ...] = ()
    sigmas: tuple[Level, ...] = (0.1, 0.2, 0.4, 0.6, 0.8)
    draws: int = Field(4, ge=1)
    grid: int = Field(32, ge=0)
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0)


class MonitorConfig(Config):
    """What is done when the reward is being fooled, and when it is thought to be (`alignment.monitor`).

    Amounts are in standard deviations of the start's samples where nothing else is said.

    Attributes:
        action: "stop" ends the run, "strengthen" multiplies the pull towards the reference and goes on, "warn" says so.
        factor: of the pull.
        patience: measurements in a row that must alarm.
        judge_fall: of a judge below its best.
        divergence: the same, where the reward has risen since.
        spread: either way, of a reward's spread over noise draws.
        profile: by which a reward rises more at one level than at the others.
        range: share of samples whose reward only one in a hundred had at the start.
        grid: of the grid score.
        norm: either way, of the latents' size.
        diversity: share by which samples of one prompt have come nearer to each other.
        distance: mean squared difference of velocities to the generator's as it was, as a share of `1 + norm^2`, their power.
        signs: how many of spread to distance must be beyond their limits together.
        far: times its limit at which one of them suffices.
    """

    action: Literal["stop", "strengthen", "warn"] = "stop"
    factor: float = Field(3.0, gt=1)
    patience: int = Field(1, ge=1)
    judge_fall: float = Field(0.1, ge=0)
    divergence: float = Field(0.02, ge=0)
    spread: float = Field(0.5, gt=0)
    profile: float = Field(0.6, gt=0)
    range: float = Field(0.25, gt=0, le=1)
    grid: float = Field(0.3, gt=0)
    norm: float = Field(0.5, gt=0)
    diversity: float = Field(0.2, gt=0, le=1)
    distance: float = Field(0.05, gt=0)
    signs: int = Field(2, ge=1)
    far: float = Field(2.0, gt=1)


class AlignConfig(Config):
    """A whole run. Everything that changes what is learned stands here.

    Attributes:
        base: diffusers pipeline folder or hub id of a flow-matching model.
        base_revision: of the hub repository.
        out: where adapters, samples, metrics and snapshots go.
        prompts: to learn from.
        algorithm: of preference optimisation.
        rewards: judged by; one or more.
        normalise: rewards before they are weighted and added: see `Mixture`.
        pretraining_data: preference folder whose real pictures ReFL's pretraining loss learns from.
        adapter: LoRA of the policy.
        sampler: of the rollouts that are learned from.
        dtype: of the frozen base weights; what is trained is always float32.
        mixed_precision: autocast of the policy's forward passes.
        max_sequence_length: prompt tokens of the generator's long text encoder; None takes the family's own.
        cut_prompts: take prompts that are longer than a text encoder reads, instead of refusing them.
        optimiser: AdamW.
        schedule: learning rate over optimiser steps of the run.
        prompts_per_update: of a process and micro batch.
        micro_batches: of an update; their gradients are averaged.
        num_updates: rollouts that are learned from.
        ema_decay: of the averaged weights that are measured and exported; 0 exports the raw ones.
        gradient_checkpointing: keep no activations inside blocks and compute them again.
        base_shards: processes that hold the base's blocks together, a part each (FSDP2); 1 keeps the base whole on each.
        reward_patience: seconds that a reward which does not answer is waited for, asked again and again.
        max_failed_updates: updates in a row without any reward, after which the run stops.
        device: "cpu" stays off an accelerator that is there.
        seed: of initialisation, order and noise.
        evaluation: measuring on the way.
        monitor: what is done about hacking.
        save_every: updates between two snapshots; 0 saves the last only.
        keep_last: so many snapshots stay.
    """

    base: str
    base_revision: str | None = None
    out: Path
    prompts: AnyPrompts
    algorithm: AnyAlgorithm
    rewards: tuple[AnyReward, ...] = Field(min_length=1)
    normalise: Normalise = "none"
    pretraining_data: Path | None = None
    adapter: AdapterConfig = AdapterConfig(rank=32, alpha=64)
    sampler: SamplerConfig = SamplerConfig()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    mixed_precision: Literal["no", "bf16"] = "no"
    max_sequence_length: int | None = Field(None, ge=1)
    cut_prompts: bool = False
    optimiser: OptimiserConfig = OptimiserConfig(learning_rate=1e-4)
    schedule: ScheduleConfig = ScheduleConfig(kind="constant", warm_up=0)
    prompts_per_update: int = Field(8, ge=1)
    micro_batches: int = Field(1, ge=1)
    num_updates: int = Field(ge=1)
    ema_decay: float = Field(0.9, ge=0, lt=1)
    gradient_checkpointing: bool = False
    base_shards: int = Field(1, ge=1)
    reward_patience: float = Field(600.0, ge=0)
    max_failed_updates: int = Field(3, ge=1)
    device: Literal["cpu"] | None = None
    seed: int = Field(0, ge=0)
    evaluation: EvaluationConfig = EvaluationConfig()
    monitor: MonitorConfig = MonitorConfig()
    save_every: int = Field(20, ge=0)
    keep_last: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _something_to_strengthen(self) -> Self:
        if self.evaluation.every and self.monitor.action == "strengthen":
            self.algorithm.build().strengthen(self.monitor.factor)
        return self

    @model_validator(mode="after")
    def _real_pictures(self) -> Self:
        if isinstance(self.algorithm, ReflConfig) and self.algorithm.pretraining and self.pretraining_data is None:
            raise ValueError("algorithm.pretraining learns from real pictures: give pretraining_data, or set it to 0")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [reward.name for reward in (*self.rewards, *self.evaluation.judges)]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards and judges need names that differ, got {names}")
        return self
