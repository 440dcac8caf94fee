"""What we count: pure functions on tensors."""

from dina_lrm.metrics.accuracy import PairCredit, pair_credit
from dina_lrm.metrics.calibration import Reliability, brier_score, reliability, soft_nll
from dina_lrm.metrics.intervals import Estimate, cluster_index, clustered_mean, wilson_interval
from dina_lrm.metrics.order import kendall_tau, kendall_tau_by_group

__all__ = [
    "Estimate",
    "PairCredit",
    "Reliability",
    "brier_score",
    "cluster_index",
    "clustered_mean",
    "kendall_tau",
    "kendall_tau_by_group",
    "pair_credit",
    "reliability",
    "soft_nll",
    "wilson_interval",
]
