"""What the grid score sees: lines of growing strength on real art."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from dina_lrm.alignment.measures import grid_score
from dina_lrm.worlds.emoji import TRAINED_STYLES
from dina_lrm.worlds.locate import emoji_root

__all__ = ["grid_rows"]

PERIOD = 16  # VAE factor times patch size
STRENGTHS = (1, 2, 4, 8, 16)  # grey levels of 255
EACH = 100


def drawings() -> Tensor:
    """Real art of every style, evenly spaced, `[n 3 64 64]`."""
    found = []
    for style in TRAINED_STYLES:
        rows = pq.read_table(emoji_root() / "art" / f"{style}.parquet", columns=["image"]).to_pylist()
        for place in np.linspace(0, len(rows) - 1, EACH).round().astype(int):
            picture = np.asarray(Image.open(io.BytesIO(rows[place]["image"])).convert("RGB"))
            found.append(torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def with_lines(pixels: Tensor, period: int, strength: float) -> Tensor:
    """Darker lines down and across, in 8 bits."""
    on = torch.arange(pixels.shape[-1]) % period == 0
    lines = (on[:, None] | on[None]).float()
    return (pixels - strength / 255 * lines).clamp(0, 1).mul(255).round() / 255


def grid_rows() -> list[dict[str, Any]]:
    """For each grid and strength: the score, and how often it is higher with the grid than without on another picture."""
    art = drawings()
    plain = grid_score(art, PERIOD)
    rows: list[dict[str, Any]] = [
        {"period": None, "strength": 0, "mean": float(plain.mean()), "std": float(plain.std())}
    ]
    for period in (8, 16):
        for strength in STRENGTHS:
            score = grid_score(with_lines(art, period, strength), PERIOD)
            rows.append(
                {
                    "period": period,
                    "strength": strength,
                    "mean": float(score.mean()),
                    "shift": float((score - plain).mean() / plain.std(correction=0)),
                    "told_apart": float((score[:, None] > plain[None]).float().mean()),
                }
            )
    return rows
