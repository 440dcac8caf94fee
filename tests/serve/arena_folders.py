"""Small folders of candidates and a judge who knows them, for the tests of the arena."""

from __future__ import annotations

import asyncio
import colorsys
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from dina_lrm.data import Candidate, Origin, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.errors import ImageError
from dina_lrm.serve.arena import Judge
from dina_lrm.serve.errors import WorkerError

NUM_PROMPTS, NUM_CANDIDATES = 12, 4


def prompt_of(number: int) -> str:
    return f"a drawing of thing {number}"


def name_of(prompt: int, candidate: int) -> str:
    return f"{prompt:02d}-{candidate}"


def picture(prompt: int, candidate: int, side: int = 32) -> Image.Image:
    """Every candidate has a colour of its own."""
    hue, value = prompt / NUM_PROMPTS, 1 - candidate / (2 * NUM_CANDIDATES)
    rgb = colorsys.hsv_to_rgb(hue, 0.8, value)
    return Image.new("RGB", (side, side), tuple(round(255 * part) for part in rgb))


def webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def preference_folder(
    folder: Path,
    shape: Sequence[int] = (4, 2, 2),
    num_prompts: int = NUM_PROMPTS,
    missing_previews: int = 0,
    **made_by: object,
) -> PreferenceData:
    """Candidates with previews, each with latents of its own; the last ones of each prompt without a preview."""
    candidates, row = [], 0
    for prompt in range(num_prompts):
        for candidate in range(NUM_CANDIDATES):
            preview = None if candidate >= NUM_CANDIDATES - missing_previews else webp(picture(prompt, candidate))
            origin = Origin("real", f"thing {prompt}", "flat", f"number {candidate}")
            candidates.append(
                Candidate(name_of(prompt, candidate), prompt_of(prompt), row, origin, preview, float(-candidate))
            )
            row += 1
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(row, *shape, generator=generator).half().float()
    pairs = {"test": [PreferencePair(prompt_of(0), name_of(0, 0), name_of(0, 1), 3, 1)]}
    return write_preference_data(folder, candidates, latents, pairs, "things", {"model": "none", **made_by})


def picture_folder(folder: Path, num_prompts: int = 3, sides: Sequence[int] = (32,)) -> Path:
    """`prompts.jsonl` and its pictures, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for prompt in range(num_prompts):
        names = []
        for candidate in range(3):
            name = f"{prompt}-{candidate}.png"
            picture(prompt, candidate, sides[candidate % len(sides)]).save(folder / name)
            names.append(name)
        lines.append(json.dumps({"prompt": prompt_of(prompt), "images": names}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class KnowingJudge(Judge):
    """Prefers the candidate with the lower number, by a margin that grows with the distance."""

    def __init__(self, name: str = "knowing:1") -> None:
        self.asked: list[str] = []
        self.name: str | None = name
        self.broken = False
        self.bad: set[str] = set()

    @property
    def identity(self) -> str | None:
        return self.name

    async def utilities(self, prompt: str, candidates: Sequence[str]) -> list[float]:
        self.asked.append(prompt)
        await asyncio.sleep(0)
        if self.broken:
            raise WorkerError("out of order")
        if self.bad & set(candidates):
            raise ImageError("no picture")
        return [-float(name.rpartition("-")[2].removesuffix(".png")) for name in candidates]

    def probability(self, margins: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(margins)
