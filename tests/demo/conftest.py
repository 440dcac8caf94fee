"""A world of seconds: the random pipeline of the golden vectors with made-up preferences."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dina_lrm.data import Candidate, Origin, PreferencePair, write_preference_data
from dina_lrm.demo import Budget

PIPELINE = Path(__file__).parents[1] / "golden" / "sd3-tiny" / "pipeline"
TINY = Budget(
    num_steps=3,
    batch_size=4,
    validate_every=2,
    validation_pairs=4,
    max_prompts=None,
    profile_sigmas=(0.1, 0.7),
    samples=3,
    rankings=1,
    candidates=3,
    encoded_pictures=2,
)


def webp(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 255 - shade, 90)).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts a split, four candidates a prompt."""
    root = tmp_path_factory.mktemp("world")
    (root / "pipeline").symlink_to(PIPELINE.resolve())
    generator = torch.Generator().manual_seed(0)
    candidates, latents, pairs = [], [], {}
    for split in ("train", "validation", "test", "unseen_style", "unseen_damage"):
        pairs[split] = []
        for number in range(2):
            prompt = f"{split} thing {number}"
            ids = [f"{split}-{number}-{place}" for place in range(4)]
            for place, name in enumerate(ids):
                kind = "generator" if place else "real"
                latents.append(torch.randn(16, 8, 8, generator=generator) + place)
                candidates.append(
                    Candidate(
                        name, prompt, len(latents) - 1, Origin(kind, "thing", "noto"), webp(60 * place), float(place)
                    )
                )
            pairs[split] += [
                PreferencePair(prompt, ids[better], ids[worse], 6, 2, 1, "concept" if better == 3 else "damage")
                for worse in range(4)
                for better in range(worse + 1, 4)
            ]
    write_preference_data(root / "preferences", candidates, torch.stack(latents), pairs, "made up")
    (root / "art").mkdir()
    pq.write_table(pa.table({"image": [webp(10), webp(200)]}), root / "art" / "noto.parquet")
    (root / "measurements.json").write_text('{"psnr_db": {"held_out": {"value": 28.5}}, "seen_pairs": 1}')
    return root
