"""A model on disk: our folder, and the authors' published layout."""

from dina_lrm.checkpoint.convert import Conversion, convert_model
from dina_lrm.checkpoint.describe import describe, load_any, verify
from dina_lrm.checkpoint.folder import load_model, refuse_foreign, save_model, verify_model
from dina_lrm.checkpoint.format import (
    BaseReference,
    BradleyTerryConfig,
    CalibrationConfig,
    LikelihoodConfig,
    ModelConfig,
    ScoringConfig,
    ThurstoneConfig,
)
from dina_lrm.checkpoint.stored import LoadedModel

__all__ = [
    "BaseReference",
    "BradleyTerryConfig",
    "CalibrationConfig",
    "Conversion",
    "LikelihoodConfig",
    "LoadedModel",
    "ModelConfig",
    "ScoringConfig",
    "ThurstoneConfig",
    "convert_model",
    "describe",
    "load_any",
    "load_model",
    "refuse_foreign",
    "save_model",
    "verify",
    "verify_model",
]
