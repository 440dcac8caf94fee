"""A baseline head: the average token of each stream, through a small network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dina_lrm.config import Config
from dina_lrm.heads.base import RMS_NORM_EPS, FeatureShape, HeadContexts, RewardHead
from dina_lrm.types import Features


class MeanPoolHeadConfig(Config):
    """Sizes of a `MeanPoolHead`.

    Attributes:
        width: of the head; None takes the backbone's.
    """

    kind: Literal["mean_pool"] = "mean_pool"
    width: int | None = Field(None, ge=4)

    def build(self, shape: FeatureShape) -> MeanPoolHead:
        """A fresh head for features of this shape."""
        return MeanPoolHead(self, shape)


class MeanPoolHead(RewardHead):
    """Mean over image tokens beside mean over text tokens, then two layers: what attention has to beat."""

    def __init__(self, config: MeanPoolHeadConfig, shape: FeatureShape) -> None:
        super().__init__()
        width = config.width or shape.width
        self.norms_image = nn.ModuleList(nn.RMSNorm(shape.width, eps=RMS_NORM_EPS) for _ in range(shape.num_image_taps))
        self.norms_text = nn.ModuleList(nn.RMSNorm(shape.width, eps=RMS_NORM_EPS) for _ in range(shape.num_text_taps))
        self.merge_image = nn.Linear(shape.num_image_taps * shape.width, width)
        self.merge_text = nn.Linear(shape.num_text_taps * shape.width, width)
        self.time = nn.Linear(shape.temb_width, width)
        self.to_utility = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, 1))

    def contexts(self, features: Features) -> HeadContexts:
        """Normalise and join the taps, add the time embedding to the image tokens."""

        def merged(norms: nn.ModuleList, taps: tuple[Tensor, ...]) -> Tensor:
            return torch.cat([norm(tokens) for norm, tokens in zip(norms, taps, strict=True)], dim=-1)

        image = self.merge_image(merged(self.norms_image, features.image_tokens))
        text = self.merge_text(merged(self.norms_text, features.text_tokens))
        return HeadContexts(image + self.time(features.temb).unsqueeze(1), text)

    def read(self, contexts: HeadContexts) -> Tensor:
        """Utility `[b]` of the two averages."""
        pooled = torch.cat([contexts.image.mean(dim=1), contexts.text.mean(dim=1)], dim=-1)
        utility: Tensor = self.to_utility(pooled).squeeze(-1)
        return utility
