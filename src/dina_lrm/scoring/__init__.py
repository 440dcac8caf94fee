"""Ask for a reward."""

from dina_lrm.images import open_image
from dina_lrm.scoring.reward_model import RewardModel

__all__ = ["RewardModel", "open_image"]
