"""A tiny generator on disk, a reward on its weights, and runs over them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dina_lrm.alignment import AlignConfig
from dina_lrm.backbones import BackboneConfig, load_backbone
from dina_lrm.checkpoint import BaseReference, ModelConfig, save_model
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.model import build_network
from tests.pipelines import build_pipeline

PROMPTS = ("a red fox", "two owls", "a sea house")
FACTORY = {"kind": "factory", "make": "tests.alignment.tiny:make_scorer"}
ALGORITHMS = {
    "refl": {"kind": "refl", "kl": 0.1},
    "draft": {"kind": "draft", "last_steps": 2},
    "draft_lv": {"kind": "draft", "noisings": 2},
    "flow_grpo": {"kind": "flow_grpo", "group_size": 3, "window": 1, "epochs": 2},
    "nft": {"kind": "nft", "group_size": 3, "passes": 2},
    "dpo": {"kind": "dpo", "group_size": 3},
    "step_dpo": {"kind": "step_dpo", "candidates": 3},
}
HEAD = QueryHeadConfig(width=16, num_queries=2, num_attention_heads=2)


def make_world(folder: Path, kind: str = "sd35", backbone: str = "sd3") -> Path:
    """`base/`, `reward/` and `prompts.txt`."""
    base = build_pipeline(kind, folder / "base")
    config = BackboneConfig.model_validate(
        {"kind": backbone, "image_taps": (1, 2), "text_taps": (1, 2), "max_sequence_length": 24, "adapter": {"rank": 2}}
    )
    torch.manual_seed(1)
    network = build_network(load_backbone(config, str(base)), HEAD)
    for name, parameter in network.backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    save_model(folder / "reward", network, ModelConfig(backbone=config, base=BaseReference(name=str(base)), head=HEAD))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def configured(world: Path, out: Path, algorithm: dict[str, Any] | None = None, **changes: Any) -> AlignConfig:
    """Two updates of two prompts, four steps."""
    values = {
        "base": str(world / "base"),
        "out": out,
        "prompts": {"kind": "file", "path": world / "prompts.txt"},
        "algorithm": algorithm or {"kind": "refl"},
        "rewards": ({"kind": "latent", "model": str(world / "reward")},),
        "adapter": {"rank": 2, "alpha": 4},
        "sampler": {"num_steps": 4, "guidance": 1.0, "height": 64, "width": 64},
        "optimiser": {"learning_rate": 1e-2},
        "max_sequence_length": 32,
        "prompts_per_update": 2,
        "num_updates": 2,
        "device": "cpu",
        "save_every": 1,
        **changes,
    }
    return AlignConfig.model_validate(values)


class Clock:
    """Time that passes only in sleep; stands in for the module."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def monotonic(self) -> float:
        return sum(self.slept)

    perf_counter = staticmethod(time.perf_counter)


def mean_colour(pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
    """A scorer of pictures."""
    return pixels.flatten(1).mean(dim=1)


def make_scorer(scale: float = 1.0) -> Any:
    """What a recipe may name."""
    return lambda pixels, prompts: scale * mean_colour(pixels, prompts)


def make_nothing() -> Any:
    """A scorer that always fails."""

    def score(pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
        raise RuntimeError("out of order")

    return score
