"""A model on disk: our folder, and the authors' published layout."""

from dina_lrm.checkpoint.describe import describe, load_any, verify
from dina_lrm.checkpoint.folder import LoadedModel, load_model, save_model, verify_model
from dina_lrm.checkpoint.format import (
    BaseReference,
    BradleyTerryConfig,
    CalibrationConfig,
    LikelihoodConfig,
    ModelConfig,
    ScoringConfig,
    ThurstoneConfig,
)

__all__ = [
    "BaseReference",
    "BradleyTerryConfig",
    "CalibrationConfig",
    "LikelihoodConfig",
    "LoadedModel",
    "ModelConfig",
    "ScoringConfig",
    "ThurstoneConfig",
    "describe",
    "load_any",
    "load_model",
    "save_model",
    "verify",
    "verify_model",
]
