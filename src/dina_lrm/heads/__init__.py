"""Features to utility."""

from typing import Annotated

from pydantic import Field

from dina_lrm.heads.base import FeatureShape, HeadContexts, RewardHead
from dina_lrm.heads.mean_pool import MeanPoolHead, MeanPoolHeadConfig
from dina_lrm.heads.query import QueryHead, QueryHeadConfig

HeadConfig = Annotated[QueryHeadConfig | MeanPoolHeadConfig, Field(discriminator="kind")]

__all__ = [
    "FeatureShape",
    "HeadConfig",
    "HeadContexts",
    "MeanPoolHead",
    "MeanPoolHeadConfig",
    "QueryHead",
    "QueryHeadConfig",
    "RewardHead",
]
