"""What the world holds, and how fast its pictures and prompts become what a backbone reads."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from dina_lrm.backbones import Backbone, BackboneConfig, load_backbone
from dina_lrm.data import PreferenceData, unique_prompts
from dina_lrm.demo.settings import SPLITS, Budget
from dina_lrm.encoding import encode_prompts_once
from dina_lrm.errors import DataError, InputError
from dina_lrm.evals import SplitView
from dina_lrm.images import to_square_pixels
from dina_lrm.report import EncodingFacts, SplitFacts, WorldFacts

__all__ = ["encode_world", "num_blocks", "split_facts", "world_facts"]


def num_blocks(world: Path) -> int:
    """Blocks of the world's transformer."""
    return int(_transformer_sizes(world)["num_layers"])


def _transformer_sizes(world: Path) -> dict[str, Any]:
    path = world / "pipeline" / "transformer" / "config.json"
    try:
        sizes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); the world needs a whole diffusers pipeline") from error
    return sizes


def world_facts(world: Path, kept_blocks: int) -> WorldFacts:
    """Sizes of the generator, and what its builder measured (`measurements.json`, where there is one)."""
    sizes = _transformer_sizes(world)
    measured = world / "measurements.json"
    side = int(sizes["sample_size"])
    return WorldFacts(
        name="the emoji world",
        description="A Stable Diffusion 3 in miniature, trained from scratch on openly licensed emoji art.",
        transformer_parameters=_count_parameters(world / "pipeline" / "transformer"),
        transformer_blocks=int(sizes["num_layers"]),
        kept_blocks=kept_blocks,
        latent_shape=(int(sizes["in_channels"]), side, side),
        image_size=8 * side,
        quality=_quality(json.loads(measured.read_text(encoding="utf-8"))) if measured.is_file() else {},
    )


# What the report quotes: its words, where the number stands, and what it is multiplied by.
_QUOTED = (
    ("reconstruction of held-out art, dB", "psnr_db.held_out.value", 1.0),
    ("motif among an independent judge’s top 10 for real art, %", "seen_pairs.real_art.top10.value", 100.0),
    ("for samples, %", "seen_pairs.samples.top10.value", 100.0),
    ("for samples of concept and style never seen together, %", "unseen_pairs.samples.top10.value", 100.0),
    ("for samples of another caption, %", "seen_pairs.samples_for_another_caption.top10.value", 100.0),
)


def _quality(measured: dict[str, Any]) -> dict[str, float]:
    """The quoted numbers; one that was not measured is left out."""
    found: dict[str, float] = {}
    for words, path, scale in _QUOTED:
        value: Any = measured
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            found[words] = scale * value
    return found


def _count_parameters(folder: Path) -> int:
    """Elements of all tensors of a folder's safetensors files, read from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def split_facts(data: PreferenceData, max_prompts: int | None) -> dict[str, SplitFacts]:
    """Sizes of the training split and of the measured ones.

    Raises:
        DataError: a split that the demo needs is missing.
    """
    facts = {}
    for split, label in {"train": "training", **SPLITS}.items():
        if split not in data.splits:
            raise DataError(
                f"{data.folder} has no split {split!r}, which the demo needs; it has {', '.join(data.splits)}"
            )
        whole = SplitView.of(data, split)
        measured = min(len(whole.prompts), max_prompts or len(whole.prompts))
        facts[split] = SplitFacts(
            label=label,
            prompts=len(whole.prompts),
            pairs=len(whole.target),
            candidates=len(whole.candidates),
            measured_prompts=measured,
            measured_pairs=int((whole.prompt_of_pair < measured).sum()),
        )
    return facts


def encode_world(world: Path, data: PreferenceData, backbone_config: BackboneConfig, budget: Budget) -> EncodingFacts:
    """Encode every prompt once, and some of the art there and back, against the clock.

    Nothing is kept: each training run keeps its own prompts, and a cache that answers would be timed instead.
    """
    backbone = load_backbone(backbone_config.model_copy(update={"adapter": None}), str(world / "pipeline"))
    prompts = unique_prompts(*(data.pairs(split) for split in ("train", *SPLITS)))
    backbone.encode_prompts(prompts[:1])  # loads the text encoders, which is no encoding
    start = time.perf_counter()
    encode_prompts_once(backbone, prompts)
    prompt_seconds = time.perf_counter() - start
    pixels = _art(world, budget.encoded_pictures, backbone.native_size)
    picture_seconds, psnr = _there_and_back(backbone, pixels) if len(pixels) else (math.nan, math.nan)
    return EncodingFacts(
        prompts=len(prompts),
        prompts_per_second=len(prompts) / prompt_seconds,
        pictures=len(pixels),
        pictures_per_second=len(pixels) / picture_seconds,
        reconstruction_psnr=psnr,
    )


def _art(world: Path, count: int, side: int) -> Tensor:
    """Pictures evenly spaced over the art tables, `[n 3 y x]`; none where the world was shipped without its art."""
    rows: list[bytes] = []
    for path in sorted((world / "art").glob("*.parquet")):
        rows += pq.read_table(path, columns=["image"])["image"].to_pylist()
    chosen = rows[:: max(1, len(rows) // count)][:count]
    pixels = [to_square_pixels(Image.open(io.BytesIO(image)), side) for image in chosen]
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, side, side)


def _there_and_back(backbone: Backbone, pixels: Tensor) -> tuple[float, float]:
    """Seconds to encode, and the mean PSNR in dB of the decoded pictures."""
    backbone.encode_images(pixels[:1])  # loads the VAE
    start = time.perf_counter()
    latents = backbone.encode_images(pixels)
    seconds = time.perf_counter() - start
    error = (backbone.decode_latents(latents) - pixels).square().mean(dim=(1, 2, 3))
    return seconds, float((-10 * error.clamp_min(1e-10).log10()).mean())
