"""What every step of the recipe needs: the pictures as tensors, an average of weights, a log of losses."""

from __future__ import annotations

import copy
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).parent
TRAINED_STYLES = ("noto", "blob", "flat", "glossy")
HELD_OUT_STYLE = "twemoji"


def read_art(styles: tuple[str, ...], folder: Path | None = None) -> list[dict[str, Any]]:
    """Rows of the art tables, each with its picture as uint8 `[3 64 64]` under `pixels`."""
    rows = []
    for style in styles:
        for row in pq.read_table((folder or ROOT / "art") / f"{style}.parquet").to_pylist():
            picture = np.asarray(Image.open(io.BytesIO(row.pop("image"))).convert("RGB"))
            rows.append({**row, "pixels": torch.from_numpy(picture.copy()).permute(2, 0, 1)})
    return rows


class Ema:
    """Exponential moving average of a module's weights in float32, warmed up so that early steps count."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        ours = list(self.module.parameters())
        torch._foreach_lerp_(ours, list(module.parameters()), 1 - decay)


class Log:
    """Losses as JSON lines, so that curves can be drawn while a step runs."""

    def __init__(self, path: Path, seconds_before: float = 0.0) -> None:
        """Start afresh, or go on with the file of a run that had lasted `seconds_before`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a" if seconds_before else "w", buffering=1)
        self.start = time.monotonic() - seconds_before

    def write(self, **values: float) -> None:
        row = {"seconds": round(time.monotonic() - self.start, 1), **values}
        self.file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, total - warmup))))


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, both `[b 3 y x]` in 0..1, clamped and rounded to 8 bits."""
    error = (reconstruction.clamp(0, 1).mul(255).round() / 255 - target).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()
