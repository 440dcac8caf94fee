"""A picture of a search: at each choice what every candidate would have become, and who went on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Candidate", "Choice", "pruning_picture"]

TILE, GAP, LABEL, LINE = 96, 10, 118, 18
KEPT, DROPPED, INK, MUTED, PAPER = "#1a7f37", "#d1242f", "#1f2328", "#656d76", "#ffffff"


@dataclass(frozen=True)
class Candidate:
    """A sample when it was read.

    Attributes:
        number: of the noise that it began as.
        picture: what it would have become.
        reward: None where it failed.
        kept: whether it went on.
    """

    number: int
    picture: Image.Image
    reward: float | None
    kept: bool


@dataclass(frozen=True)
class Choice:
    """A row of the picture.

    Attributes:
        label: such as "sigma 0.70".
        candidates: that were read.
    """

    label: str
    candidates: tuple[Candidate, ...]


def pruning_picture(title: str, choices: Sequence[Choice], tile: int = TILE) -> Image.Image:
    """A row a choice, a column a sample; those that went on are framed, the others pale.

    Args:
        title: above all.
        choices: in their order; each sample of a later one is in the first.
        tile: side of a picture, in pixels.
    """
    columns = {candidate.number: place for place, candidate in enumerate(choices[0].candidates)}
    top, row = LINE + 2 * GAP, tile + LINE + 2 * GAP
    width = LABEL + len(columns) * (tile + GAP) + GAP
    whole = Image.new("RGB", (max(width, 360), top + len(choices) * row), PAPER)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    for place, choice in enumerate(choices):
        y = top + place * row
        went_on = sum(candidate.kept for candidate in choice.candidates)
        draw.text((GAP, y + tile / 2 - LINE), choice.label, fill=INK, font=font)
        draw.text((GAP, y + tile / 2), f"{went_on} of {len(choice.candidates)} kept", fill=MUTED, font=font)
        for candidate in choice.candidates:
            x = LABEL + columns[candidate.number] * (tile + GAP)
            _draw_candidate(whole, draw, candidate, x, y, tile, font)
    return whole


def _draw_candidate(
    whole: Image.Image,
    draw: ImageDraw.ImageDraw,
    candidate: Candidate,
    x: int,
    y: int,
    tile: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    scale = tile / max(candidate.picture.size)
    size = tuple(max(1, round(side * scale)) for side in candidate.picture.size)
    picture = candidate.picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.LANCZOS)
    if not candidate.kept:
        picture = Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.6)
    left, above = x + (tile - size[0]) // 2, y + (tile - size[1]) // 2
    whole.paste(picture, (left, above))
    colour, thickness = (KEPT, 3) if candidate.kept else (DROPPED, 1)
    frame = (left - thickness, above - thickness, left + size[0] + thickness - 1, above + size[1] + thickness - 1)
    draw.rectangle(frame, outline=colour, width=thickness)
    told = "failed" if candidate.reward is None else f"{candidate.reward:.2f}"
    draw.text((x, y + tile + 4), f"{candidate.number}:", fill=MUTED, font=font)
    draw.text((x + tile, y + tile + 4), told, fill=colour, font=font, anchor="ra")
