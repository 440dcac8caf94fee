"""Tiny preference folders."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dina_lrm.data import Candidate, Origin, PreferenceData, PreferencePair, write_preference_data

PROMPTS = ("red apple, noto style", "green pear, flat style", "brown bear, blob style")


@pytest.fixture
def candidates() -> list[Candidate]:
    """Three pictures a prompt; the last of each has neither preview, origin nor truth."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "WEBP")
    out = []
    for p, prompt in enumerate(PROMPTS):
        concept = prompt.split(",")[0]
        out.append(Candidate(f"{p}-a", prompt, 3 * p, Origin("real", concept, "noto"), encoded.getvalue(), 1.0))
        out.append(
            Candidate(f"{p}-b", prompt, 3 * p + 1, Origin("damaged", concept, "noto", "blur 0.5"), b"torn", -1.0)
        )
        out.append(Candidate(f"{p}-c", prompt, 3 * p + 2))
    return out


@pytest.fixture
def pairs() -> dict[str, list[PreferencePair]]:
    """Two prompts to train on, one to test: unanimous, split, and undecided."""
    train = [
        PreferencePair(PROMPTS[0], "0-a", "0-b", 9, 0, 0, "damage"),
        PreferencePair(PROMPTS[0], "0-c", "0-b", 6, 2, 1, "mixed"),
        PreferencePair(PROMPTS[1], "1-b", "1-a", 0, 0, 9, "damage"),
        PreferencePair(PROMPTS[1], "1-c", "1-a", 5, 3, 1, "mixed"),
        PreferencePair(PROMPTS[1], "1-b", "1-c", 4, 4, 1, "mixed"),
    ]
    return {"train": train, "test": [PreferencePair(PROMPTS[2], "2-a", "2-b", 8, 1, 0, "damage")]}


@pytest.fixture
def latents() -> torch.Tensor:
    """Nine latents, each filled with its own row number."""
    return torch.arange(9.0).view(9, 1, 1, 1).expand(9, 4, 2, 2).clone()


@pytest.fixture
def write(
    tmp_path: Path, candidates: list[Candidate], latents: torch.Tensor, pairs: dict[str, list[PreferencePair]]
) -> Callable[[], PreferenceData]:
    """Write the tiny folder."""
    return lambda: write_preference_data(tmp_path / "tiny", candidates, latents, pairs, "tiny", {"model": "none"})


@pytest.fixture
def tiny(write: Callable[[], PreferenceData]) -> PreferenceData:
    """The tiny folder, opened."""
    return write()
