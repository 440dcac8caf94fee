"""What we count: pure functions on tensors."""

from dina_lrm.metrics.accuracy import PairCredit, pair_credit
from dina_lrm.metrics.calibration import (
    Reliability,
    brier_score,
    calibration_error,
    calibration_floor,
    reliability,
    soft_nll,
)
from dina_lrm.metrics.intervals import Estimate, cluster_index, clustered_mean, wilson_interval
from dina_lrm.metrics.order import kendall_tau, kendall_tau_by_group
from dina_lrm.metrics.sequential import SequentialTest, looks_at, moderated, student_quantile

__all__ = [
    "Estimate",
    "PairCredit",
    "Reliability",
    "SequentialTest",
    "brier_score",
    "calibration_error",
    "calibration_floor",
    "cluster_index",
    "clustered_mean",
    "kendall_tau",
    "kendall_tau_by_group",
    "looks_at",
    "moderated",
    "pair_credit",
    "reliability",
    "soft_nll",
    "student_quantile",
    "wilson_interval",
]
