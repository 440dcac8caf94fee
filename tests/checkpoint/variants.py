"""Published checkpoints of every form, made from the golden one."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina_lrm.backbones import BackboneConfig, load_backbone
from tests.golden_fixtures import PIPELINE, PUBLISHED

BASE = str(PIPELINE)
TAPS = (1, 2, 4)


def copy_published(folder: Path) -> Path:
    """The golden checkpoint, to be changed."""
    return Path(shutil.copytree(PUBLISHED, folder))


def edit_json(path: Path, **updates: Any) -> None:
    """Set keys; dots lead into nested objects."""
    values = json.loads(path.read_text())
    for dotted, value in updates.items():
        *parents, last = dotted.split("__")
        node = values
        for key in parents:
            node = node[key]
        node[last] = value
    path.write_text(json.dumps(values))


def edit_training(root: Path, **updates: Any) -> None:
    """Of `config.json`."""
    edit_json(root / "config.json", **updates)


def edit_adapter_config(root: Path, **updates: Any) -> None:
    """Of `adapter_config.json`."""
    edit_json(root / "checkpoint" / "backbone_lora" / "adapter_config.json", **updates)


def edit_adapter(root: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Tensors of the adapter."""
    path = root / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    save_file(change({name: value.clone() for name, value in load_file(path).items()}), path)


def edit_head(root: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Tensors of the head."""
    path = root / "checkpoint" / "rm_head.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)


def head_only(folder: Path) -> Path:
    """What a frozen backbone leaves."""
    root = copy_published(folder)
    shutil.rmtree(root / "checkpoint" / "backbone_lora")
    edit_training(root, model__freeze_backbone=True)
    return root


def full_model(folder: Path, network: dict[str, Tensor] | None = None, inner: str = "") -> Path:
    """What training without LoRA leaves: by default the kept weights of the golden pipeline, each moved a little.

    Args:
        folder: to write.
        network: weights in their place.
        inner: stands between the part and the name, such as `module.`.
    """
    root = copy_published(folder)
    checkpoint = root / "checkpoint"
    head = torch.load(checkpoint / "rm_head.pt", weights_only=True)
    state = OrderedDict((f"backbone.{inner}{name}", value) for name, value in (network or moved_network()).items())
    state |= {f"reward_head.{inner}{name}": value for name, value in head.items()}
    torch.save(state, checkpoint / "full_model.pt")
    shutil.rmtree(checkpoint / "backbone_lora")
    (checkpoint / "rm_head.pt").unlink()
    edit_training(root, model__use_lora=False)
    return root


def moved_network() -> dict[str, Tensor]:
    """The golden pipeline's kept weights, times 1.01."""
    backbone = load_backbone(BackboneConfig(image_taps=TAPS, text_taps=TAPS, adapter=None), BASE)
    return {name: value * 1.01 for name, value in backbone.network_state().items()}


def in_bfloat16(root: Path) -> Path:
    """Every weight as training in bf16 leaves it."""
    edit_head(root, lambda state: OrderedDict((name, value.bfloat16()) for name, value in state.items()))
    edit_adapter(root, lambda state: {name: value.bfloat16() for name, value in state.items()})
    return root


def changed_base(folder: Path, part: str, **updates: Any) -> str:
    """The golden pipeline with another configuration of one part."""
    shutil.copytree(PIPELINE, folder)
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit_json(folder / part / name, **updates)
    return str(folder)
