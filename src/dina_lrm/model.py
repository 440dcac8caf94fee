"""The model: backbone, then head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dina_lrm.backbones import Backbone
from dina_lrm.heads import HeadConfig, HeadContexts, RewardHead, attention_map
from dina_lrm.types import Conditioning, Features, NoisedState


class RewardNetwork(nn.Module):
    """`utility = head(backbone(state, conditioning))`; the head runs in float32 whatever the backbone's dtype.

    Attributes:
        dealt_out: whether several processes hold the backbone together and must run it equally often (`runtime.sharding`).
    """

    dealt_out: bool = False

    def __init__(self, backbone: Backbone, head: RewardHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """What the head sees, in float32."""
        features: Features = self.backbone(state, conditioning)
        return features.float()

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """Utility `[b]`, differentiable in `state.noised_latents`."""
        features = self.features(state, conditioning)
        with torch.autocast(features.temb.device.type, enabled=False):
            utility: Tensor = self.head(features)
        return utility

    def read_joined(self, levels: Sequence[Features]) -> Tensor:
        """Utility `[b]` of one head pass over the tokens of several noise levels (paper, equation 7)."""
        with torch.autocast(levels[0].temb.device.type, enabled=False):
            return self.head.read(HeadContexts.join([self.head.contexts(features) for features in levels]))

    def attention(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """Where each query of the head looks in the picture, `[b q y x]` on the grid of the finest tapped tokens.

        Each map sums to 1. Taps of several scales (a UNet's) meet on one grid.

        Args:
            state: as the network reads it.
            conditioning: of as many prompts.

        Raises:
            ConfigError: the head has no attention.
            ShapeError: latents of a video.
        """
        features = self.features(state, conditioning)
        with torch.autocast(features.temb.device.type, enabled=False):
            weights = self.head.attention(self.head.contexts(features))
        num_tokens = [tokens.shape[1] for tokens in features.image_tokens]
        return attention_map(weights, num_tokens, self.backbone.feature_shape.image_scales, state.noised_latents.shape)


def build_network(backbone: Backbone, head: HeadConfig) -> RewardNetwork:
    """A fresh head on a backbone."""
    return RewardNetwork(backbone, head.build(backbone.feature_shape).to(backbone.device))
