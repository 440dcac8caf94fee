"""Pictures from outside to the pixels that a backbone takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dina_lrm.errors import ImageError, ShapeError


def open_image(path: Path | str) -> Image.Image:
    """Read a picture whole and upright, as RGB; transparency becomes white.

    Raises:
        ImageError: missing, truncated, not a picture, or too large to be one.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ImageError(
            f"image {str(path)!r} cannot be read: {reason}; give a whole PNG, JPEG or WebP file"
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB on white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture.convert("RGB")


def fit_size(width: int, height: int, native: int, multiple: int) -> tuple[int, int]:
    """Size to score a picture at: at most the base's native area, sides rounded to `multiple`, aspect ratio kept.

    Larger pictures are reduced, because a base knows only so many positions; smaller ones keep their size.
    """
    scale = min(1.0, native / math.sqrt(width * height))

    def side(length: int) -> int:
        return max(multiple, round(length * scale / multiple) * multiple)

    return side(width), side(height)


def fitted(image: Image.Image, native: int, multiple: int) -> Image.Image:
    """A picture as RGB, resized to what `fit_size` says (Lanczos). Fitting twice may not give what fitting once does."""
    image = to_rgb(image)
    size = fit_size(image.width, image.height, native, multiple)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def to_pixels(image: Image.Image, native: int, multiple: int) -> Tensor:
    """A picture as `[3 y x]` in 0..1, resized to what `fit_size` says (Lanczos)."""
    return as_pixels(fitted(image, native, multiple))


def to_square_pixels(image: Image.Image, side: int) -> Tensor:
    """A picture as `[3 side side]` in 0..1: its central square, resized (Lanczos)."""
    image = to_rgb(image)
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return as_pixels(image)


def group_by_size(images: Sequence[Image.Image], native: int, multiple: int) -> list[tuple[list[int], Tensor]]:
    """Pictures as pixels, those of one fitted size together.

    Args:
        images: one or more, of any sizes.
        native: as `fit_size` takes it.
        multiple: the same.

    Returns:
        Places among `images` and their pixels `[b 3 y x]`, a pair a size, in order of appearance.

    Raises:
        ShapeError: no pictures, or something else than a list of them.
    """
    if isinstance(images, str | Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise ShapeError(f"images must be a list of PIL pictures or pixels [b 3 y x], got {images!r:.80}")
    if not images:
        raise ShapeError("images must hold one or more pictures, got none")
    pixels = [to_pixels(image, native, multiple) for image in images]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(pixels):
        groups.setdefault(tuple(one.shape), []).append(place)
    return [(places, torch.stack([pixels[place] for place in places])) for places in groups.values()]


def as_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as `[3 y x]` in 0..1, in its own size."""
    return torch.from_numpy(np.asarray(image, dtype=np.uint8).copy()).permute(2, 0, 1).float() / 255


def sheet(pixels: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures of one size on one sheet, row by row.

    Args:
        pixels: `[n 3 y x]` in 0..1; values outside are clamped.
        columns: pictures a row; None makes the sheet about square.
        gap: white pixels between pictures.

    Raises:
        ShapeError: no pictures.
    """
    if pixels.ndim != 4 or not len(pixels):
        raise ShapeError(f"a sheet needs pictures [n 3 y x], got {list(pixels.shape)}")
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    height, width = pixels.shape[2] + gap, pixels.shape[3] + gap
    whole = Image.new("RGB", (columns * width - gap, -(-len(pixels) // columns) * height - gap), "white")
    levels = (pixels.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for place, picture in enumerate(levels):
        whole.paste(Image.fromarray(picture), (place % columns * width, place // columns * height))
    return whole
