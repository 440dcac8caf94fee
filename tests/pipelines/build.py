"""The families by kind, and a folder of one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tests.pipelines import flux, qwen_image, sd15, sd_3, sdxl, wan, z_image
from tests.pipelines.weights import randomise

_BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd3": sd_3.sd3,
    "sd35": sd_3.sd35,
    "sd35_large": sd_3.sd35_large,
    "flux": flux.dev,
    "flux_schnell": flux.schnell,
    "zimage": z_image.build,
    "qwen_image": qwen_image.build,
    "sdxl": sdxl.build,
    "sd15": sd15.build,
    "wan": wan.build,
}

KINDS: tuple[str, ...] = tuple(_BUILDERS)


def build_pipeline(kind: str, folder: Path) -> Path:
    """The same weights at every call: they hang on `kind` alone.

    Args:
        kind: one of `KINDS`.
        folder: of the pipeline: made where there is none.
    """
    # The constructors draw weights of their own: what the caller has seeded stays as it was.
    with torch.random.fork_rng(devices=[]):
        pipeline = _BUILDERS[kind]()
    for name, network in sorted(_networks(pipeline).items()):
        randomise(network, seed=zlib.crc32(f"{kind}/{name}".encode()))
    pipeline.save_pretrained(folder)
    return folder


def _networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
