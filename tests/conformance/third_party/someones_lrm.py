"""What a third party writes: a backbone and a head from the abstract classes alone, on no pipeline of any library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dina_lrm.backbones import Backbone, BackboneConfig
from dina_lrm.heads import HeadConfigBase, HeadContexts, RewardHead
from dina_lrm.noise import ForwardProcess, RectifiedFlow
from dina_lrm.types import Conditioning, Features, FeatureShape, NoisedState

WIDTH = 8


class PebbleBackbone(Backbone):
    """Two layers on single latent pixels, made of nothing but a seed."""

    process: ForwardProcess = RectifiedFlow()
    default_adapter_targets = ("to_token",)
    default_image_taps = (0, 1)
    default_text_taps = (0,)

    def __init__(self, config: BackboneConfig, base: str) -> None:
        super().__init__()
        self.config, self.base = config, base
        self.width = self.temb_width = WIDTH
        self.latent_channels = 4
        layers = {"to_token": nn.Linear(4, WIDTH), "block": nn.Linear(WIDTH, WIDTH), "time": nn.Linear(1, WIDTH)}
        self.network = nn.ModuleDict(layers).requires_grad_(False)
        if config.adapter is not None:
            self.add_adapter(config.adapter)

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        base: str,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        random_seed: int | None = None,
    ) -> Self:
        with torch.random.fork_rng():
            torch.manual_seed(len(base) if random_seed is None else random_seed)
            return cls(config, base).to(dtype).eval()

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        first = self.network["to_token"](state.noised_latents.flatten(2).transpose(1, 2))
        image = {0: first, 1: first + torch.tanh(self.network["block"](first))}
        temb = self.network["time"](state.sigma.unsqueeze(1))
        taps = tuple(image[tap] for tap in self.config.image_taps)
        return Features(taps, (conditioning.prompt_embeds,), temb, conditioning.prompt_mask)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        length = self.config.max_sequence_length if max_sequence_length is None else max_sequence_length
        codes = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in zip(codes, prompts, strict=True):
            row[: len(prompt)] = torch.tensor([ord(letter) % 127 + 1 for letter in prompt])
        angles = codes.unsqueeze(-1) * torch.arange(1, WIDTH + 1) / WIDTH
        return Conditioning(angles.sin(), None, codes > 0)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return F.pad(pixels[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1)) * 2 - 1

    def decode_latents(self, latents: Tensor) -> Tensor:
        return (latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2) / 2 + 0.5).clamp(0, 1)

    def schedule_sigmas(self) -> Tensor:
        return torch.linspace(1, 0.01, 100)

    def drop_encoders(self) -> None:
        """There are none."""

    def signature(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "width": WIDTH}

    @property
    def image_multiple(self) -> int:
        return 2

    @property
    def native_size(self) -> int:
        return 8


class LoudestHeadConfig(HeadConfigBase):
    """Sizes of a `LoudestHead`."""

    kind: Literal["loudest"] = "loudest"
    loudness: float = 1.0

    def build(self, shape: FeatureShape) -> LoudestHead:
        return LoudestHead(self, shape)


class LoudestHead(RewardHead):
    """The largest token speaks for all."""

    def __init__(self, config: LoudestHeadConfig, shape: FeatureShape) -> None:
        super().__init__()
        self.loudness = config.loudness
        self.to_utility = nn.Linear(shape.image_widths[-1] + shape.temb_width, 1)

    def contexts(self, features: Features) -> HeadContexts:
        tokens = features.image_tokens[-1]
        temb = features.temb.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        return HeadContexts(torch.cat([tokens, temb], dim=-1), features.text_tokens[-1], features.text_mask)

    def read(self, contexts: HeadContexts) -> Tensor:
        return self.loudness * self.to_utility(contexts.image.amax(dim=1)).squeeze(-1)
