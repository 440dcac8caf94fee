"""What a user of the third party's package does; run in a process of its own, it prints what came of it as JSON.

Arguments: a folder to work in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dina_lrm import RewardModel
from dina_lrm.backbones import AdapterConfig, available_backbones, load_backbone
from dina_lrm.checkpoint import BaseReference, ModelConfig, describe, load_model, save_model, verify_model
from dina_lrm.config import apply_overrides, load_config
from dina_lrm.errors import DinaError
from dina_lrm.heads import available_heads
from dina_lrm.model import build_network
from dina_lrm.training import TrainConfig
from dina_lrm.types import NoisedState

TRAIN = """
data: somewhere
base: pebbles
out: elsewhere
num_steps: 1
backbone: {kind: pebble, image_taps: [0, 1], text_taps: [0], adapter: null}
head: {kind: loudest, loudness: 3}
"""
TAPS = "image_taps: [0, 1], text_taps: [0], "


def refusal(act: Callable[[], Any]) -> str:
    try:
        act()
    except DinaError as error:
        return f"{type(error).__name__}: {error}"
    return "passed"


def parse(folder: Path, text: str) -> TrainConfig:
    (folder / "train.yaml").write_text(text)
    return load_config(TrainConfig, folder / "train.yaml")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def round_trip(folder: Path, adapter: AdapterConfig | None) -> dict[str, Any]:
    """Build, save, load, save again."""
    train = parse(folder, TRAIN)
    config = ModelConfig(
        backbone=train.backbone.model_copy(update={"adapter": adapter}),
        base=BaseReference(name=train.base),
        head=train.head,
    )
    torch.manual_seed(0)
    network = build_network(load_backbone(config.backbone, train.base), config.head).eval()
    state = NoisedState(torch.randn(2, 4, 4, 6), torch.tensor([0.2, 0.8]))
    conditioning = network.backbone.encode_prompts(["a pebble", "two"])
    save_model(folder / "once", network, config)
    verify_model(folder / "once")
    loaded = load_model(folder / "once")
    save_model(folder / "again", loaded.network, loaded.config)
    model = RewardModel.from_pretrained(folder / "once")
    with torch.no_grad():
        utility, again = network(state, conditioning), loaded.network(state, conditioning)
    return {
        "network": [type(loaded.network.backbone).__name__, type(loaded.network.head).__name__],
        "loudness": loaded.network.head.loudness,
        "same_bytes": files(folder / "once") == files(folder / "again"),
        "near": torch.allclose(utility, again, atol=1e-6),
        "described": describe(folder / "once")["head"],
        "scored": model.score_state(state, conditioning).reward.shape == (2,),
    }


def main(folder: Path) -> dict[str, Any]:
    unknown = TRAIN.replace("pebble,", "nobody,")
    overridden = apply_overrides(parse(folder, TRAIN), ["head.loudness=5"])
    (folder / "frozen").mkdir()
    (folder / "adapted").mkdir()
    return {
        "backbones": available_backbones(),
        "heads": available_heads(),
        "head": parse(folder, TRAIN).head.model_dump(mode="json"),
        "overridden": overridden.head.model_dump(mode="json"),
        "frozen": round_trip(folder / "frozen", None),
        "adapted": round_trip(folder / "adapted", AdapterConfig(rank=2, alpha=4)),
        "own_taps": parse(folder, TRAIN.replace(TAPS, "")).backbone.model_dump(mode="json"),
        "unknown_backbone": refusal(lambda: load_backbone(parse(folder, unknown).backbone, "x")),
        "unknown_backbone_and_no_taps": refusal(
            lambda: load_backbone(parse(folder, unknown.replace(TAPS, "")).backbone, "x")
        ),
        "unknown_head": refusal(lambda: parse(folder, TRAIN.replace("loudest", "nobody"))),
        "wrong_size": refusal(lambda: parse(folder, TRAIN.replace("loudness: 3", "loudness: much"))),
        "wrong_key": refusal(lambda: parse(folder, TRAIN.replace("loudness: 3", "width: 3"))),
    }


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1])), sys.stdout)
