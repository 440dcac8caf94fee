"""The emoji world as a place to teach a generator in: what to ask it for, and who judges what it draws.

A policy learns from prompts of concepts that reward models were trained on, and is judged on prompts of concepts that none of
them has seen, by the oracle, which shares nothing with any of them.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.worlds.locate import emoji_root
from dina_lrm.worlds.oracle import Oracle

__all__ = ["TRAINED_STYLES", "asked_for", "emoji_prompts", "emoji_scorer", "seed_of", "split_of"]

TRAINED_STYLES = ("noto", "blob", "flat", "glossy")
_CANONICAL = re.compile(r"(?P<concept>.+), (?P<style>\w+) style")


def seed_of(*words: object) -> int:
    """A seed that depends on nothing but the words: 48 bits of their SHA-256."""
    return int.from_bytes(hashlib.sha256(" / ".join(map(str, words)).encode()).digest()[:6], "big")


def split_of(concept: str) -> str:
    """Which split may show a concept: 55 % train, 15 % validation, 30 % test and both out-of-domain tests."""
    share = seed_of("split", concept) / 2**48
    return "train" if share < 0.55 else "validation" if share < 0.7 else "test"


def emoji_prompts(split: str, world: Path | str | None = None) -> tuple[str, ...]:
    """Every concept of a split in every trained style that it was drawn in: `"fox, noto style"`.

    Args:
        split: "train", "validation" or "test".
        world: folder; None takes the one that came with the package.

    Raises:
        ValueRangeError: another split.
        DataError: the world was shipped without its art.
    """
    if split not in ("train", "validation", "test"):
        raise ValueRangeError(f'split must be "train", "validation" or "test", got {split!r}')
    rows = _rows(emoji_root(world), TRAINED_STYLES, ["concept", "style"])
    asked = {f"{row['concept']}, {row['style']} style" for row in rows if split_of(row["concept"]) == split}
    return tuple(sorted(asked))


def asked_for(prompt: str) -> tuple[str, str]:
    """Concept and style that a prompt of `emoji_prompts` names.

    Raises:
        ValueRangeError: worded in another way.
    """
    match = _CANONICAL.fullmatch(prompt)
    if match is None:
        raise ValueRangeError(f'the oracle reads prompts like "fox, noto style", got {prompt!r}')
    return match["concept"], match["style"]


def emoji_scorer(world: Path | str | None = None) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """The oracle as a scorer of pictures, without gradients: pixels `[b 3 64 64]` in 0..1 and prompts to utilities `[b]`.

    Args:
        world: folder; None takes the one that came with the package.
    """
    root = emoji_root(world)
    drawings: dict[str, list[Tensor]] = {}
    for row in _rows(root, TRAINED_STYLES, ["concept", "image"]):
        picture = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        drawings.setdefault(row["concept"], []).append(torch.from_numpy(picture.copy()).permute(2, 0, 1))
    stacked = {concept: torch.stack(pictures) for concept, pictures in drawings.items()}
    oracle = Oracle.from_folder(root / "oracle", root / "judge", stacked)

    def score(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        concepts, styles = zip(*map(asked_for, prompts), strict=True)
        return oracle.utility(oracle.read(pixels.detach().cpu().float()), concepts, styles).float()

    return score


def _rows(root: Path, styles: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
    paths = [root / "art" / f"{style}.parquet" for style in styles]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]} is missing: this world was shipped without its art; clone the repository whole")
    return [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]
