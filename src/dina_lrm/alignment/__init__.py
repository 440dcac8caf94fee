"""Preference optimisation: a generator learns by a reward, and is told when it fools it."""

from dina_lrm.alignment.aligner import Aligned, Aligner
from dina_lrm.alignment.config import (
    AlignConfig,
    DpoConfig,
    DraftConfig,
    EvaluationConfig,
    FactoryPromptsConfig,
    FactoryRewardConfig,
    FlowGrpoConfig,
    LatentRewardConfig,
    MonitorConfig,
    NftConfig,
    PreferencePromptsConfig,
    PromptFileConfig,
    ReflConfig,
    SamplerConfig,
    ServerRewardConfig,
    StepDpoConfig,
    StepNoiseConfig,
)
from dina_lrm.runtime.optimiser import OptimiserConfig, ScheduleConfig

__all__ = [
    "AlignConfig",
    "Aligned",
    "Aligner",
    "DpoConfig",
    "DraftConfig",
    "EvaluationConfig",
    "FactoryPromptsConfig",
    "FactoryRewardConfig",
    "FlowGrpoConfig",
    "LatentRewardConfig",
    "MonitorConfig",
    "NftConfig",
    "OptimiserConfig",
    "PreferencePromptsConfig",
    "PromptFileConfig",
    "ReflConfig",
    "SamplerConfig",
    "ScheduleConfig",
    "ServerRewardConfig",
    "StepDpoConfig",
    "StepNoiseConfig",
]
