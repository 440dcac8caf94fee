"""Measure a reward."""

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
from dina_lrm.evals.splits import SplitView

__all__ = [
    "AccuracyEstimate",
    "CalibrationCard",
    "EvalCard",
    "ReliabilityBin",
    "ScoredSplit",
    "ScoringRule",
    "SigmaProfile",
    "SplitView",
    "accuracy_gap",
    "evaluate",
    "make_card",
    "prompt_seed",
    "score_split",
    "score_views",
    "sigma_profile",
]
