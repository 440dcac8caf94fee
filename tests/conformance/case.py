"""A case of the suite, and how features are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.backbones import AdapterConfig, Backbone, BackboneConfig, load_backbone
from dina_lrm.types import Conditioning, Features, NoisedState

PROMPTS = ("a red fox", "two owls on a branch, at night", "")
ADAPTER = AdapterConfig(rank=2, alpha=4)

Whole = Callable[[Any, list[str], Tensor, float, int], Features]


@dataclass(frozen=True)
class Case:
    """A backbone to be shown.

    Attributes:
        folder: of a tiny pipeline.
        config: without an adapter; its taps hold 0, and as deep ones as most tests need.
        last_taps: the last that there are, of image and text: each tap up to them is read alone.
        latent_shapes: of one sample, the usual one first; odd aspect ratios and the smallest are among them.
        sigmas: three levels, one a prompt of `PROMPTS`.
        lengths: two of max_sequence_length; the first holds all of `PROMPTS`, the second is short.
        whole: (pipeline, prompts, latents, sigma, max_sequence_length) to what the pipeline's own step shows to hooks on its
            whole network: tokens after every block, the embeddings first, and a mask if text is padded.
        output_layers: names, or beginnings, of weights behind the last block: none may be kept.
        standardised: (vae, raw latents `[b c ...]`) to the latents that the network was trained on, by hand.
        idle: beginnings of the names of kept weights that no feature depends on: the library reads them after the last tap,
            or makes of them what it throws away.
        frames: of a clip to encode; None for pictures.
        framed: whether the VAE is a video's, to which a picture is a clip of one.
        clip_tokens: at the front of prompt_embeds, of encoders that `max_sequence_length` is not about.
        shortens: whether `max_sequence_length` has a say at all.
    """

    folder: Path
    config: BackboneConfig
    last_taps: tuple[int, int]
    latent_shapes: tuple[tuple[int, ...], ...]
    sigmas: tuple[float, float, float]
    lengths: tuple[int, int]
    whole: Whole
    output_layers: tuple[str, ...]
    standardised: Callable[[Any, Tensor], Tensor]
    idle: tuple[str, ...] = ()
    frames: int | None = None
    framed: bool = False
    clip_tokens: int = 0
    shortens: bool = True

    def load(self, base: Any = None, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        """The backbone, by default from its folder; `changes` are of the config."""
        config = self.config.model_copy(update=changes)
        return load_backbone(config, str(self.folder) if base is None else base, dtype=dtype)

    def state(self, shape: Sequence[int] | None = None) -> NoisedState:
        """One noised sample a prompt, each at its own level."""
        shape = self.latent_shapes[0] if shape is None else shape
        generator = torch.Generator().manual_seed(1)
        return NoisedState(torch.randn(len(PROMPTS), *shape, generator=generator), torch.tensor(self.sigmas))

    def expected(self, pipeline: Any, state: NoisedState, length: int) -> list[Features]:
        """What the whole pipeline shows of each sample; a step of it has one level, so each sample takes its row of its own."""
        rows = []
        for i, sigma in enumerate(self.sigmas):
            every = self.whole(pipeline, list(PROMPTS), state.noised_latents, sigma, length)
            rows.append(self.tapped(every)[i : i + 1])
        return rows

    def tapped(self, every: Features) -> Features:
        """Of all blocks the taps of the config."""
        image = tuple(every.image_tokens[tap] for tap in self.config.image_taps)
        text = tuple(every.text_tokens[tap] for tap in self.config.text_taps)
        return Features(image, text, every.temb, every.text_mask)


def streams(features: Features) -> dict[str, list[Tensor]]:
    """Tokens by name and sample, without the padding of the text."""
    masks = features.text_mask
    features = features.map(Tensor.detach)
    told = {f"image {i}": list(tokens) for i, tokens in enumerate(features.image_tokens)}
    told["temb"] = list(features.temb)
    for i, tokens in enumerate(features.text_tokens):
        told[f"text {i}"] = [one if masks is None else one[masks[b]] for b, one in enumerate(tokens)]
    return told


def furthest(ours: Features, theirs: Features) -> float:
    """The largest distance of a stream of a sample, relative to its norm."""
    left, right = streams(ours), streams(theirs)
    assert left.keys() == right.keys()
    distances = [0.0]
    for name, tokens in left.items():
        for a, b in zip(tokens, right[name], strict=True):
            assert a.shape == b.shape, f"{name} must be {list(b.shape)}, got {list(a.shape)}"
            distances.append(float((a.float() - b.float()).norm() / b.float().norm()))
    return max(distances)


def worst(ours: Features, theirs: Features) -> float:
    """The largest difference of an element, in standard deviations of its stream."""
    left, right = streams(ours), streams(theirs)
    return max(
        float((a - b).abs().max() / b.std())
        for name, tokens in left.items()
        for a, b in zip(tokens, right[name], strict=True)
    )


def same(ours: Features, theirs: Features) -> bool:
    """Equal bit for bit."""
    left, right = streams(ours), streams(theirs)
    return all(torch.equal(a, b) for name, tokens in left.items() for a, b in zip(tokens, right[name], strict=True))


def teach(backbone: Backbone) -> Any:
    """Fill the adapter's B, which starts at zero, as if it had learned."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in backbone.network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone


def loss(features: Features) -> Tensor:
    """A number that every token has a say in, and differently."""
    every = [*features.image_tokens, *features.text_tokens, features.temb]
    return torch.stack(
        [(tokens.float() * torch.linspace(-1, 1, tokens.shape[-1])).sin().sum() for tokens in every]
    ).sum()


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    return Conditioning.cat(list(parts))
