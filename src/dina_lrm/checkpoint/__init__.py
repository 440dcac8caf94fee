"""A model on disk: our folder, and the authors' published layout."""

from dina_lrm.checkpoint.convert import Conversion, calibrated_copy, convert_model, refuse_place
from dina_lrm.checkpoint.describe import describe, is_published, load_any, verify
from dina_lrm.checkpoint.fingerprint import fingerprint
from dina_lrm.checkpoint.folder import load_model, refuse_foreign, save_calibration, save_model, verify_model
from dina_lrm.checkpoint.format import (
    BaseReference,
    BradleyTerryConfig,
    CalibrationConfig,
    CalibrationQuality,
    CalibrationScore,
    LawParametersConfig,
    LevelCalibrationConfig,
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
    "CalibrationQuality",
    "CalibrationScore",
    "Conversion",
    "LawParametersConfig",
    "LevelCalibrationConfig",
    "LikelihoodConfig",
    "LoadedModel",
    "ModelConfig",
    "ScoringConfig",
    "ThurstoneConfig",
    "calibrated_copy",
    "convert_model",
    "describe",
    "fingerprint",
    "is_published",
    "load_any",
    "load_model",
    "refuse_foreign",
    "refuse_place",
    "save_calibration",
    "save_model",
    "verify",
    "verify_model",
]
