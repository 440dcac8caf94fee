"""DiNa-LRM: reward models that read noisy diffusion states.

The public names load on first use, so `import dina_lrm` and `dina-lrm --help` do without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dina_lrm.errors import (
        BaseMismatchError,
        BaseUnavailableError,
        CheckpointError,
        ConfigError,
        DataError,
        DinaError,
        ImageError,
        InputError,
        NoAnswerError,
        PromptCutWarning,
        ShapeError,
        ValueRangeError,
        WorkError,
    )
    from dina_lrm.noise import Adaptive
    from dina_lrm.preference import Calibration
    from dina_lrm.scoring import RewardModel
    from dina_lrm.scoring.client import AsyncRewardClient, RewardClient
    from dina_lrm.scoring.protocol import RewardFunction
    from dina_lrm.types import Comparison, Conditioning, Features, NoisedState, PreferenceBatch, Ranking, Reward

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "AsyncRewardClient",
    "BaseMismatchError",
    "BaseUnavailableError",
    "Calibration",
    "CheckpointError",
    "Comparison",
    "Conditioning",
    "ConfigError",
    "DataError",
    "DinaError",
    "Features",
    "ImageError",
    "InputError",
    "NoAnswerError",
    "NoisedState",
    "PreferenceBatch",
    "PromptCutWarning",
    "Ranking",
    "Reward",
    "RewardClient",
    "RewardFunction",
    "RewardModel",
    "ShapeError",
    "ValueRangeError",
    "WorkError",
    "__version__",
]

_ERRORS = "dina_lrm.errors"
_TYPES = "dina_lrm.types"
_HOMES = {
    "Adaptive": "dina_lrm.noise",
    "AsyncRewardClient": "dina_lrm.scoring.client",
    "BaseMismatchError": _ERRORS,
    "BaseUnavailableError": _ERRORS,
    "Calibration": "dina_lrm.preference",
    "CheckpointError": _ERRORS,
    "Comparison": _TYPES,
    "Conditioning": _TYPES,
    "ConfigError": _ERRORS,
    "DataError": _ERRORS,
    "DinaError": _ERRORS,
    "Features": _TYPES,
    "ImageError": _ERRORS,
    "InputError": _ERRORS,
    "NoAnswerError": _ERRORS,
    "NoisedState": _TYPES,
    "PreferenceBatch": _TYPES,
    "PromptCutWarning": _ERRORS,
    "Ranking": _TYPES,
    "Reward": _TYPES,
    "RewardClient": "dina_lrm.scoring.client",
    "RewardFunction": "dina_lrm.scoring.protocol",
    "RewardModel": "dina_lrm.scoring.reward_model",
    "ShapeError": _ERRORS,
    "ValueRangeError": _ERRORS,
    "WorkError": _ERRORS,
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dina_lrm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
