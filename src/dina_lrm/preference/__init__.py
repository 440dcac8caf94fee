"""What a choice is: laws of choice, objectives on them, calibration."""

from dina_lrm.preference.calibration import Calibration, CalibrationLevel, RewardKind
from dina_lrm.preference.likelihoods import BradleyTerry, Likelihood, Thurstone
from dina_lrm.preference.objectives import Objective, fidelity, nll
from dina_lrm.preference.tabulated import TabulatedThurstone

__all__ = [
    "BradleyTerry",
    "Calibration",
    "CalibrationLevel",
    "Likelihood",
    "Objective",
    "RewardKind",
    "TabulatedThurstone",
    "Thurstone",
    "fidelity",
    "nll",
]
