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
        raise ImageError(f"image {str(path)!r} cannot be read: {reason}") from error


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


def to_pixels(image: Image.Image, native: int, multiple: int) -> Tensor:
    """A picture as `[3 y x]` in 0..1, resized to what `fit_size` says (Lanczos)."""
    image = to_rgb(image)
    size = fit_size(image.width, image.height, native, multiple)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def stack_pixels(images: Sequence[Image.Image], native: int, multiple: int) -> Tensor:
    """Pictures of one size as `[b 3 y x]`.

    Raises:
        ShapeError: no pictures, or sizes that differ after fitting.
    """
    if not images:
        raise ShapeError("images must hold one or more pictures, got none")
    pixels = [to_pixels(image, native, multiple) for image in images]
    sizes = {tuple(p.shape[1:]) for p in pixels}
    if len(sizes) > 1:
        raise ShapeError(
            f"images of one call must have one size, got {sorted(sizes)} (height, width); resize or crop them"
        )
    return torch.stack(pixels)
