"""A backbone of two small layers and a preference folder to train it on: everything but diffusers is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dina_lrm.backbones import Backbone, BackboneConfig
from dina_lrm.data import Candidate, PreferencePair, write_preference_data
from dina_lrm.errors import ConfigError
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.noise import RectifiedFlow
from dina_lrm.training import OptimiserConfig, ScheduleConfig, TrainConfig, ValidationConfig
from dina_lrm.types import Conditioning, Features, NoisedState

WIDTH, CHANNELS = 8, 4


class FakeNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(CHANNELS, WIDTH)
        self.text = nn.Linear(WIDTH, WIDTH)

    def forward(self, latents: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(latents.flatten(2).transpose(1, 2)).tanh(), self.text(prompt_embeds).tanh()


class FakeBackbone(Backbone):
    """Reads `[b 4 h w]`; its text encoder turns letters into numbers and counts how often it is asked."""

    default_adapter_targets = ("image", "text")

    def __init__(self, config: BackboneConfig, base: str = "fake") -> None:
        super().__init__()
        self.config, self.base, self.process = config, base, RectifiedFlow()
        self.width = self.temb_width = WIDTH
        self.latent_channels = CHANNELS
        self.network = FakeNetwork().requires_grad_(False)
        self.asked: list[str] = []
        self.has_encoders = True
        if config.adapter is not None:
            self.add_adapter(config.adapter)

    @classmethod
    def load(cls, config: BackboneConfig, base: Any, *args: Any, **kwargs: Any) -> FakeBackbone:
        return cls(config, base)

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        image, text = self.network(state.noised_latents, conditioning.prompt_embeds)
        temb = conditioning.pooled_prompt_embeds + state.sigma.unsqueeze(1)
        taps = range(len(self.config.image_taps))
        return Features(tuple(image for _ in taps), tuple(text for _ in taps), temb)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        assert self.has_encoders
        self.asked += prompts
        rows = [torch.Generator().manual_seed(sum(map(ord, p))) for p in prompts]
        embeds = torch.stack([torch.randn(3, WIDTH, generator=g) for g in rows])
        return Conditioning(embeds, embeds.mean(dim=1))

    def encode_images(self, pixels: Tensor) -> Tensor:
        latents = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([latents, latents[:, :1]], dim=1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents[:, :3], scale_factor=8).clamp(0, 1)

    def schedule_sigmas(self) -> Tensor:
        return torch.linspace(1, 0.001, 1000)

    def drop_encoders(self) -> None:
        self.has_encoders = False

    def signature(self) -> dict[str, Any]:
        return {"class": "FakeBackbone", "probe": self.network.image.weight.detach().flatten()[:4].tolist()}

    @property
    def image_multiple(self) -> int:
        return 8

    @property
    def native_size(self) -> int:
        return 32


def load_fake(
    config: BackboneConfig,
    base: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    random_seed: int | None = None,
) -> FakeBackbone:
    """Stands in for `load_backbone`."""
    if base == "missing":
        raise ConfigError("no such base")
    with torch.random.fork_rng():
        torch.manual_seed(1234 if random_seed is None else random_seed)
        backbone = FakeBackbone(config, base)
    return backbone.to(device)


def write_preferences(folder: Path, num_pairs: int = 24) -> Path:
    """Brighter latents win, by votes that are not always of one mind."""
    generator = torch.Generator().manual_seed(5)
    prompts = ("a cat", "a dog", "a fox")
    latents = torch.randn(2 * num_pairs, CHANNELS, 4, 4, generator=generator)
    latents[::2] += 1.0
    candidates = [Candidate(f"c{i}", prompts[i // 2 % 3], i) for i in range(2 * num_pairs)]
    votes = ((9, 0), (6, 3), (4, 4), (5, 3))
    pairs = [
        PreferencePair(prompts[i % 3], f"c{2 * i}", f"c{2 * i + 1}", *votes[i % 4], 9 - sum(votes[i % 4]), "mixed")
        for i in range(num_pairs)
    ]
    write_preference_data(
        folder, candidates, latents, {"train": pairs[:16], "validation": pairs[16:]}, "fake", {"class": "FakeBackbone"}
    )
    return folder


def make_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of ten steps of four pairs."""
    return TrainConfig(
        **{
            "data": data,
            "base": "fake",
            "out": out,
            "backbone": BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None),
            "head": MeanPoolHeadConfig(width=8),
            "optimiser": OptimiserConfig(learning_rate=1e-2),
            "schedule": ScheduleConfig(kind="cosine", warm_up=2),
            "batch_size": 4,
            "num_steps": 10,
            "ema_decay": 0.9,
            "device": "cpu",
            "validation": ValidationConfig(every=5, num_pairs=8, sigmas=(0.1, 0.7), batch_size=3),
            "save_every": 3,
            **changes,
        }
    )
