"""The paper's head: learned queries read gated, noise-conditioned tokens (DiNa-LRM, section 3; `method.md` 3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dina_lrm.errors import ConfigError
from dina_lrm.heads.base import RMS_NORM_EPS, HeadConfigBase, HeadContexts, MergeTaps, RewardHead
from dina_lrm.types import Features, FeatureShape


class QueryHeadConfig(HeadConfigBase):
    """Sizes of a `QueryHead`.

    Attributes:
        width: of the head; None takes the backbone's, of its widest tap.
        num_queries: learned queries; utility is the mean of their readings.
        num_attention_heads: of both cross-attentions; must divide width.
        project_in: a linear layer before each FiLM even where the widths agree.
        dropout: inside the feed-forward.
        bounded: squash utility into (-2, 2) by a learned logistic.
    """

    kind: Literal["query"] = "query"
    width: int | None = Field(None, ge=4)
    num_queries: int = Field(4, ge=1)
    num_attention_heads: int = Field(8, ge=1)
    project_in: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    bounded: bool = False

    def build(self, shape: FeatureShape) -> QueryHead:
        """A fresh head for features of this shape."""
        return QueryHead(self, shape)


def zeros(layer: nn.Linear) -> nn.Linear:
    """A layer that starts by saying nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TapAdapter(nn.Module):
    """One tap's tokens, modulated by the time embedding (FiLM) and narrowed to a quarter."""

    def __init__(self, in_width: int, temb_width: int, width: int, project_in: bool) -> None:
        super().__init__()
        needed = project_in or in_width != width
        self.project_in = nn.Linear(in_width, width) if needed else nn.Identity()
        self.film = nn.Sequential(nn.Linear(temb_width, 2 * width), nn.SiLU(), zeros(nn.Linear(2 * width, 2 * width)))
        self.layer_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.narrow = nn.Linear(width, width // 4)

    def forward(self, tokens: Tensor, temb: Tensor) -> Tensor:
        """`narrow((1 + gamma) x + beta + layer_embed)`: `[b n d]` and `[b d]` to `[b n width/4]`."""
        gamma, beta = self.film(temb).unsqueeze(1).chunk(2, dim=-1)
        hidden: Tensor = self.narrow(self.project_in(tokens) * (1 + gamma) + beta + self.layer_embed)
        return hidden


class StreamReader(nn.Module):
    """Keys and values of one token stream; with a gate, each value is scaled by what its own token says."""

    def __init__(self, width: int, gated: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=RMS_NORM_EPS)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), zeros(nn.Linear(width, 1))) if gated else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`[b n w]` to keys and values `[b n w]`."""
        tokens = self.norm(tokens)
        values = self.to_v(tokens)
        if self.gate is not None:
            values = values * torch.sigmoid(self.gate(tokens))
        return self.to_k(tokens), values


class QueryAttention(nn.Module):
    """Queries cross-attend to one or two streams, each with a softmax of its own; the readings add up."""

    def __init__(self, width: int, num_heads: int, streams: tuple[str, ...], gated: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=RMS_NORM_EPS)
        self.to_q = nn.Linear(width, width)
        self.readers = nn.ModuleDict({name: StreamReader(width, gated) for name in streams})
        self.to_out = nn.Linear(width, width)

    def forward(self, queries: Tensor, streams: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """`queries + to_out(sum over streams of softmax(q k) v)`, `[b q w]`; a stream's mask `[b n]` hides its padding."""
        q = self._split(self.to_q(self.norm(queries)))
        read = torch.zeros_like(q)
        for name, reader in self.readers.items():
            k, v = reader(streams[name])
            mask = masks[name][:, None, None] if name in masks else None
            read = read + F.scaled_dot_product_attention(q, self._split(k), self._split(v), attn_mask=mask)
        hidden: Tensor = queries + self.to_out(read.transpose(1, 2).flatten(2))
        return hidden

    def weights(self, queries: Tensor, stream: str, tokens: Tensor) -> Tensor:
        """`softmax(q k / sqrt(d))` of one stream without a mask, `[b heads q n]`: what `forward` weighs values by."""
        keys, _ = self.readers[stream](tokens)
        q, k = self._split(self.to_q(self.norm(queries))), self._split(keys)
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


class BoundedOutput(nn.Module):
    """`(high - low) / (1 + exp(-(x - centre) / (|width| + 1e-6))) + low` with learned centre and width."""

    high, low = 2.0, -2.0

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(0.0))
        self.width = nn.Parameter(torch.tensor(0.15))

    def forward(self, utility: Tensor) -> Tensor:
        return (self.high - self.low) * torch.sigmoid((utility - self.centre) / (self.width.abs() + 1e-6)) + self.low


class QueryHead(RewardHead):
    """Learned queries read image and text tokens, then image tokens alone, and vote on a utility."""

    def __init__(self, config: QueryHeadConfig, shape: FeatureShape) -> None:
        super().__init__()
        width = config.width or max(shape.image_widths)
        if width % config.num_attention_heads or width % 4:
            raise ConfigError(
                f"head width {width} must be a multiple of 4 and of num_attention_heads {config.num_attention_heads}"
            )

        def adapters(widths: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(TapAdapter(one, shape.temb_width, width, config.project_in) for one in widths)

        self.image_taps = adapters(shape.image_widths)
        self.text_taps = adapters(shape.text_widths)
        self.merge_image = MergeTaps([width // 4] * len(self.image_taps), shape.image_scales, width)
        self.merge_text = MergeTaps([width // 4] * len(self.text_taps), [1] * len(self.text_taps), width)
        self.queries = nn.Parameter(torch.randn(1, config.num_queries, width) * width**-0.5)
        self.attend_both = QueryAttention(width, config.num_attention_heads, ("image", "text"), gated=True)
        self.attend_image = QueryAttention(width, config.num_attention_heads, ("image",), gated=False)
        self.norm_feed_forward = nn.RMSNorm(width, eps=RMS_NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(config.dropout)
        )
        self.to_utility = nn.Linear(width, 1)
        self.output = BoundedOutput() if config.bounded else nn.Identity()

    def contexts(self, features: Features) -> HeadContexts:
        """FiLM each tap by `temb`, join the taps of one scale over channels, project to the head's width."""

        def narrowed(adapters: nn.ModuleList, taps: tuple[Tensor, ...]) -> list[Tensor]:
            return [adapter(tokens, features.temb) for adapter, tokens in zip(adapters, taps, strict=True)]

        return HeadContexts(
            self.merge_image(narrowed(self.image_taps, features.image_tokens)),
            self.merge_text(narrowed(self.text_taps, features.text_tokens)),
            features.text_mask,
        )

    def read(self, contexts: HeadContexts) -> Tensor:
        """Queries read both streams, then the image alone; utility is the mean over queries `[b]`."""
        queries = self.attend_image(self._asked(contexts), {"image": contexts.image}, {})
        queries = queries + self.feed_forward(self.norm_feed_forward(queries))
        utility: Tensor = self.output(self.to_utility(queries).squeeze(-1).mean(dim=1))
        return utility

    def attention(self, contexts: HeadContexts) -> Tensor:
        """How much of each query's attention every image token gets, `[b q n]`: of `attend_image`, mean over its heads.

        That layer reads the image last, and its queries have read the prompt; in `attend_both` they are still the same
        for every sample. It says where the head looks, not why the utility is high or low: values may cancel.
        """
        return self.attend_image.weights(self._asked(contexts), "image", contexts.image).mean(dim=1)

    def _asked(self, contexts: HeadContexts) -> Tensor:
        """The queries after they have read both streams `[b q w]`."""
        streams = {"image": contexts.image, "text": contexts.text}
        masks = {} if contexts.text_mask is None else {"text": contexts.text_mask}
        return self.attend_both(self.queries.expand(len(contexts.image), -1, -1), streams, masks)
