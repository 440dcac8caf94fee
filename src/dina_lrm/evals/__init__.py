"""Measure a reward."""

from dina_lrm.evals.calibrate import (
    CalibrationCurve,
    CalibrationReport,
    CalibrationSettings,
    calibrate,
    held_out_pairs,
)
from dina_lrm.evals.card import (
    AccuracyEstimate,
    CalibrationCard,
    EvalCard,
    ReliabilityBin,
    SigmaProfile,
)
from dina_lrm.evals.evaluate import (
    ScoredSplit,
    accuracy_gap,
    evaluate,
    make_card,
    prompt_seed,
    score_split,
    score_views,
    sigma_profile,
)
from dina_lrm.evals.rules import ScoringRule
from dina_lrm.evals.space import check_latent_space
from dina_lrm.evals.splits import SplitView

__all__ = [
    "AccuracyEstimate",
    "CalibrationCard",
    "CalibrationCurve",
    "CalibrationReport",
    "CalibrationSettings",
    "EvalCard",
    "ReliabilityBin",
    "ScoredSplit",
    "ScoringRule",
    "SigmaProfile",
    "SplitView",
    "accuracy_gap",
    "calibrate",
    "check_latent_space",
    "evaluate",
    "held_out_pairs",
    "make_card",
    "prompt_seed",
    "score_split",
    "score_views",
    "sigma_profile",
]
