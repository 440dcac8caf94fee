"""Files of pictures from strangers: their size is read and judged before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from PIL import Image, ImageOps

from dina_lrm.backbones import Backbone
from dina_lrm.errors import ImageError
from dina_lrm.images import fit_size, fitted, to_rgb
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.settings import ServeSettings

__all__ = ["Fit", "check_pixels", "decode_base64", "fitted_pixels", "open_pictures"]

FORMATS = ("PNG", "JPEG", "WEBP")
DATA_URL = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40};base64,")
MOST_NATIVE_AREAS = 4  # that a fitted picture may cover: a long and narrow one grows when its sides are rounded


@dataclass(frozen=True)
class Fit:
    """How a backbone wants its pictures.

    Attributes:
        native: side of the square pictures it was made for.
        multiple: of which sides must be multiples.
    """

    native: int
    multiple: int

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """As it says itself."""
        return cls(backbone.native_size, backbone.image_multiple)


def decode_base64(text: str, place: int) -> bytes:
    """The bytes of a picture's file; a data URL is taken too, as browsers make them.

    Args:
        text: base64, padded.
        place: of the picture, for the message.

    Returns:
        The bytes.

    Raises:
        ImageError: not base64.
    """
    prefix = DATA_URL.match(text)
    try:
        return base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"image {place} is not base64: {error}") from error


def fitted_pixels(files: Sequence[bytes | bytearray], fit: Fit, settings: ServeSettings) -> int:
    """How large some pictures will be, by their headers alone.

    Args:
        files: of pictures.
        fit: how the backbone wants them.
        settings: for the most pixels, of one and of all.

    Returns:
        Pixels of all, once they are fitted.

    Raises:
        ImageError: a file that is no PNG, JPEG or WebP picture, or one that is too long and narrow.
        Refusal: too many pixels.
    """
    left, found = settings.max_request_pixels, 0
    for place, file in enumerate(files):
        width, height = _open(file, place).size
        left -= width * height
        if width * height > settings.max_pixels:
            told = f"image {place} has {width} x {height} pixels, at most {settings.max_pixels} are decoded"
            raise Refusal(413, "too_many_pixels", told)
        if left < 0:
            raise _too_many_together(settings)
        area = math.prod(fit_size(width, height, fit.native, fit.multiple))
        if area > MOST_NATIVE_AREAS * fit.native**2:
            raise ImageError(f"image {place} of {width} x {height} pixels is too long and narrow for this model")
        found += area
    return found


def check_pixels(files: Sequence[bytes | bytearray], settings: ServeSettings) -> None:
    """Refuse pictures of which each alone would be decoded, and which are too many together.

    Args:
        files: of pictures; those that cannot be read, or are too large alone, count for nothing.
        settings: for the most pixels, of one and of all.

    Raises:
        Refusal: too many pixels.
    """
    found = 0
    for place, file in enumerate(files):
        with suppress(ImageError, Refusal):
            pixels = math.prod(_open(file, place).size)
            found += pixels if pixels <= settings.max_pixels else 0
    if found > settings.max_request_pixels:
        raise _too_many_together(settings)


def open_pictures(files: Sequence[bytes | bytearray], fit: Fit) -> list[Image.Image]:
    """Decode files that were measured, each fitted to the backbone before the next: no two are in memory whole.

    Args:
        files: of pictures.
        fit: how the backbone wants them.

    Returns:
        RGB pictures, upright, on white, of sizes that the backbone takes.

    Raises:
        ImageError: a file that is no whole picture.
    """
    return [fitted(_whole(_open(file, place), place), fit.native, fit.multiple) for place, file in enumerate(files)]


def _too_many_together(settings: ServeSettings) -> Refusal:
    told = f"the images of one request have more than {settings.max_request_pixels} pixels together"
    return Refusal(413, "too_many_pixels", told)


def _open(file: bytes | bytearray, place: int) -> Image.Image:
    """The picture's header."""
    try:
        return Image.open(io.BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal(413, "too_many_pixels", f"image {place} is larger than any picture: {error}") from error
    except Exception as error:  # Pillow raises whatever its parsers meet
        raise ImageError(f"image {place} is not a PNG, JPEG or WebP file that can be read") from error


def _whole(picture: Image.Image, place: int) -> Image.Image:
    try:
        picture.load()
        return to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # the same
        raise ImageError(f"image {place} is damaged or cut off: {type(error).__name__}") from error
