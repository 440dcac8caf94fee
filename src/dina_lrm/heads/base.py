"""What every reward head offers: features to contexts, contexts to utility."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dina_lrm.types import Features, TensorRecord

RMS_NORM_EPS = 1.1920929e-07  # float32's epsilon, whatever the dtype: what torch implies differs between versions


@dataclass(frozen=True)
class FeatureShape:
    """What a head must know of its backbone's features.

    Attributes:
        width: of the tokens, d.
        temb_width: of the time embedding.
        num_image_taps: how many image streams arrive.
        num_text_taps: how many text streams arrive.
    """

    width: int
    temb_width: int
    num_image_taps: int
    num_text_taps: int


@dataclass(frozen=True)
class HeadContexts(TensorRecord):
    """Tokens that a head reads, all noise information absorbed.

    Attributes:
        image: `[b n w]`.
        text: `[b m w]`.
    """

    image: Tensor
    text: Tensor

    def __getitem__(self, index: Tensor | slice) -> HeadContexts:
        return self.map(lambda t: t[index])

    @staticmethod
    def join(levels: Sequence[HeadContexts]) -> HeadContexts:
        """Concatenate over tokens: the paper's noise ensemble, read once (equation 7)."""
        return HeadContexts(
            torch.cat([level.image for level in levels], dim=1), torch.cat([level.text for level in levels], dim=1)
        )


class RewardHead(nn.Module, ABC):
    """Features to utility, in two stages so that an ensemble can join tokens in between."""

    @abstractmethod
    def contexts(self, features: Features) -> HeadContexts:
        """Condition the tapped tokens on the noise level and merge the taps."""

    @abstractmethod
    def read(self, contexts: HeadContexts) -> Tensor:
        """Read utility `[b]` from tokens, however many."""

    def forward(self, features: Features) -> Tensor:
        """Utility `[b]` of features."""
        return self.read(self.contexts(features))
