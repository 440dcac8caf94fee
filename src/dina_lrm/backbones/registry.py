"""Backbones by name. A third party adds one by the entry point group `dina_lrm.backbones`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from dina_lrm.backbones.base import Backbone, BackboneConfig
from dina_lrm.errors import ConfigError

_OWN = {
    "flux": "dina_lrm.backbones.flux:FluxBackbone",
    "qwen_image": "dina_lrm.backbones.qwen_image:QwenImageBackbone",
    "sd15": "dina_lrm.backbones.sd15:Sd15Backbone",
    "sd3": "dina_lrm.backbones.sd3:Sd3Backbone",
    "sdxl": "dina_lrm.backbones.sdxl:SdxlBackbone",
    "wan": "dina_lrm.backbones.wan:WanBackbone",
    "zimage": "dina_lrm.backbones.zimage:ZImageBackbone",
}


def available_backbones() -> dict[str, str]:
    """Name to `module:class`, ours and those of installed packages."""
    theirs = {point.name: point.value for point in entry_points(group="dina_lrm.backbones")}
    return dict(sorted({**theirs, **_OWN}.items()))


def load_backbone(
    config: BackboneConfig,
    base: Any,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    random_seed: int | None = None,
) -> Backbone:
    """Load the backbone that `config.kind` names.

    Args:
        config: what to keep and to read.
        base: diffusers pipeline folder, hub id, or a loaded pipeline.
        device: where to put it.
        dtype: of the base weights; adapters stay float32.
        revision: of the hub repository.
        random_seed: random weights instead of the pretrained ones: the control of an experiment.

    Raises:
        ConfigError: no such backbone.
    """
    if isinstance(base, Path):
        base = str(base)
    backbone: Backbone = backbone_class(config.kind).load(
        config, base, dtype=dtype, revision=revision, random_seed=random_seed
    )
    return backbone.to(device)


def backbone_class(kind: str) -> Any:
    """The class behind a name.

    Raises:
        ConfigError: no such backbone.
    """
    if kind in _OWN:
        module, _, name = _OWN[kind].partition(":")
        return getattr(import_module(module), name)
    for point in entry_points(group="dina_lrm.backbones", name=kind):
        return point.load()
    raise ConfigError(f"backbone kind {kind!r} is unknown; known are {', '.join(available_backbones())}")
