"""A baseline head: the average token of each stream, through a small network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dina_lrm.heads.base import RMS_NORM_EPS, HeadConfigBase, HeadContexts, MergeTaps, RewardHead
from dina_lrm.types import Features, FeatureShape


class MeanPoolHeadConfig(HeadConfigBase):
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
        width = config.width or max(shape.image_widths)
        self.norms_image = nn.ModuleList(nn.RMSNorm(one, eps=RMS_NORM_EPS) for one in shape.image_widths)
        self.norms_text = nn.ModuleList(nn.RMSNorm(one, eps=RMS_NORM_EPS) for one in shape.text_widths)
        self.merge_image = MergeTaps(shape.image_widths, shape.image_scales, width)
        self.merge_text = MergeTaps(shape.text_widths, [1] * len(shape.text_widths), width)
        self.time = nn.Linear(shape.temb_width, width)
        self.to_utility = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, 1))

    def contexts(self, features: Features) -> HeadContexts:
        """Normalise and join the taps, add the time embedding to the image tokens."""

        def normalised(norms: nn.ModuleList, taps: tuple[Tensor, ...]) -> list[Tensor]:
            return [norm(tokens) for norm, tokens in zip(norms, taps, strict=True)]

        image = self.merge_image(normalised(self.norms_image, features.image_tokens))
        text = self.merge_text(normalised(self.norms_text, features.text_tokens))
        return HeadContexts(image + self.time(features.temb).unsqueeze(1), text, features.text_mask)

    def read(self, contexts: HeadContexts) -> Tensor:
        """Utility `[b]` of the two averages."""
        text = contexts.text.mean(dim=1)
        if contexts.text_mask is not None:
            weight = contexts.text_mask.to(contexts.text.dtype).unsqueeze(-1)
            text = (contexts.text * weight).sum(dim=1) / weight.sum(dim=1)
        utility: Tensor = self.to_utility(torch.cat([contexts.image.mean(dim=1), text], dim=-1)).squeeze(-1)
        return utility
