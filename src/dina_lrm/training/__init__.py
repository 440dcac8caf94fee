"""Learn a reward."""

from dina_lrm.runtime.optimiser import OptimiserConfig, ScheduleConfig
from dina_lrm.training.config import LevelsConfig, TrainConfig, ValidationConfig
from dina_lrm.training.step import StepResult, training_step
from dina_lrm.training.trainer import Trainer

__all__ = [
    "LevelsConfig",
    "OptimiserConfig",
    "ScheduleConfig",
    "StepResult",
    "TrainConfig",
    "Trainer",
    "ValidationConfig",
    "training_step",
]
