"""What every reward head offers: features to contexts, contexts to utility."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dina_lrm.config import Config
from dina_lrm.errors import ConfigError
from dina_lrm.types import Features, FeatureShape, TensorRecord

RMS_NORM_EPS = 1.1920929e-07  # float32's epsilon, whatever the dtype: what torch implies differs between versions


class HeadConfigBase(Config, ABC):
    """Sizes of a head; a third party's stands under its `kind` in the entry point group `dina_lrm.heads`.

    Attributes:
        kind: its name.
    """

    kind: str

    @abstractmethod
    def build(self, shape: FeatureShape) -> RewardHead:
        """A fresh head for features of this shape."""


@dataclass(frozen=True)
class HeadContexts(TensorRecord):
    """Tokens that a head reads, all noise information absorbed.

    Attributes:
        image: `[b n w]`.
        text: `[b m w]`.
        text_mask: which text tokens are the prompt's, bool `[b m]`; None where all are.
    """

    image: Tensor
    text: Tensor
    text_mask: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> HeadContexts:
        return self.map(lambda t: t[index])

    @staticmethod
    def join(levels: Sequence[HeadContexts]) -> HeadContexts:
        """Concatenate over tokens: the paper's noise ensemble, read once (equation 7)."""
        masks = [level.text_mask for level in levels if level.text_mask is not None]
        return HeadContexts(
            torch.cat([level.image for level in levels], dim=1),
            torch.cat([level.text for level in levels], dim=1),
            torch.cat(masks, dim=1) if masks else None,
        )


class MergeTaps(nn.ModuleList):
    """Taps to one stream: those of one scale meet over channels in a linear layer, the scales stand behind each other.

    A transformer has one scale; a UNet's taps have as many tokens as their resolution gives.
    """

    def __init__(self, in_widths: Sequence[int], scales: Sequence[int], width: int) -> None:
        self.groups = [
            [i for i, scale in enumerate(scales) if scale == one] for one in sorted(set(scales), reverse=True)
        ]
        super().__init__(nn.Linear(sum(in_widths[i] for i in group), width) for group in self.groups)

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """`[b n_i d_i]` a tap to `[b n width]`, n the sum over scales."""
        merged = [
            layer(torch.cat([taps[i] for i in group], dim=-1)) for layer, group in zip(self, self.groups, strict=True)
        ]
        return torch.cat(merged, dim=1)


class RewardHead(nn.Module, ABC):
    """Features to utility, in two stages so that an ensemble can join tokens in between."""

    @abstractmethod
    def contexts(self, features: Features) -> HeadContexts:
        """Condition the tapped tokens on the noise level and merge the taps."""

    @abstractmethod
    def read(self, contexts: HeadContexts) -> Tensor:
        """Read utility `[b]` from tokens, however many."""

    def attention(self, contexts: HeadContexts) -> Tensor:
        """How much of each query's attention every image token gets, `[b q n]`; sums to 1 over `n`.

        Raises:
            ConfigError: this head reads its tokens without attention.
        """
        raise ConfigError(
            f"a {type(self).__name__} attends to nothing, so it has no attention map; a query head has one"
        )

    def forward(self, features: Features) -> Tensor:
        """Utility `[b]` of features."""
        return self.read(self.contexts(features))
