"""Features to utility."""

from dina_lrm.heads.base import HeadConfigBase, HeadContexts, RewardHead
from dina_lrm.heads.maps import attention_map
from dina_lrm.heads.mean_pool import MeanPoolHead, MeanPoolHeadConfig
from dina_lrm.heads.query import QueryHead, QueryHeadConfig
from dina_lrm.heads.registry import HeadConfig, available_heads

__all__ = [
    "HeadConfig",
    "HeadConfigBase",
    "HeadContexts",
    "MeanPoolHead",
    "MeanPoolHeadConfig",
    "QueryHead",
    "QueryHeadConfig",
    "RewardHead",
    "attention_map",
    "available_heads",
]
