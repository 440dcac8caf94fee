"""Pictures as trainers hand them over, to pictures as a reward function takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.images import to_rgb

Batch = Tensor | np.ndarray[Any, Any] | Sequence[Image.Image]


def as_pictures(images: Batch) -> list[Image.Image]:
    """A batch of pictures as RGB of eight bits, whatever it came as.

    Floats are rounded to the nearest of 256 values, as when a picture is saved: a server that is sent PNG then sees the
    same as a model in this process.

    Args:
        images: torch `[b 3 y x]` in 0..1, numpy `[b y x 3]` uint8, or a list of pictures; transparency becomes white.

    Raises:
        ShapeError: another shape or dtype.
        ValueRangeError: floats that are not finite, or outside 0..1.
    """
    if isinstance(images, Tensor):
        return [Image.fromarray(one) for one in _eight_bits(images)]
    if isinstance(images, np.ndarray) and images.dtype != object:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ShapeError(f"a numpy batch of pictures must be uint8 [b y x 3], got {images.dtype} {images.shape}")
        return [Image.fromarray(np.ascontiguousarray(one)) for one in images]
    pictures = list(images)
    for place, one in enumerate(pictures):
        if not isinstance(one, Image.Image):
            raise ShapeError(f"images must be pictures, got {type(one).__name__} at place {place}")
    return [to_rgb(one) for one in pictures]


def _eight_bits(images: Tensor) -> np.ndarray[Any, Any]:
    """`[b 3 y x]` to uint8 `[b y x 3]`."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"a torch batch of pictures must be [b 3 y x], got {list(images.shape)}")
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    if not images.is_floating_point():
        raise ShapeError(f"a torch batch of pictures must be floats in 0..1 or uint8, got {images.dtype}")
    images = images.float()
    # A decoder's clamp in half precision may leave a rounding error beyond the ends, never more.
    inside = (images >= -0.01) & (images <= 1.01)
    if not bool(inside.all()):
        raise ValueRangeError(f"pixels must lie in 0..1, got {float(images[~inside][0]):g}")
    return np.ascontiguousarray(images.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
