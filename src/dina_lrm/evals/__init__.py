"""Measure a reward."""

from dina_lrm.evals.benchmark import (
    BenchmarkCard,
    RuleConfig,
    TaskConfig,
    available_tasks,
    find_task,
    run_task,
)
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
from dina_lrm.evals.conventions import CONVENTIONS, ConventionCard, TieCard, TiedAccuracy, tie_card
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
    "CONVENTIONS",
    "AccuracyEstimate",
    "BenchmarkCard",
    "CalibrationCard",
    "CalibrationCurve",
    "CalibrationReport",
    "CalibrationSettings",
    "ConventionCard",
    "EvalCard",
    "ReliabilityBin",
    "RuleConfig",
    "ScoredSplit",
    "ScoringRule",
    "SigmaProfile",
    "SplitView",
    "TaskConfig",
    "TieCard",
    "TiedAccuracy",
    "accuracy_gap",
    "available_tasks",
    "calibrate",
    "check_latent_space",
    "evaluate",
    "find_task",
    "held_out_pairs",
    "make_card",
    "prompt_seed",
    "run_task",
    "score_split",
    "score_views",
    "sigma_profile",
    "tie_card",
]
