"""Files of pictures from strangers: their size is read and judged before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from dina_lrm.errors import ImageError
from dina_lrm.images import fit_size, fitted, to_rgb
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.settings import ServeSettings

__all__ = ["Fit", "decode_base64", "open_pictures"]

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


def open_pictures(files: Sequence[bytes | bytearray], fit: Fit | None, settings: ServeSettings) -> list[Image.Image]:
    """Decode files, each fitted to the backbone before the next is opened, so that no two are in memory whole.

    Args:
        files: of pictures.
        fit: how the backbone wants them; None leaves them in their own size.
        settings: for the most pixels, of one and of all.

    Returns:
        RGB pictures, upright, on white, of sizes that the backbone takes.

    Raises:
        ImageError: a file that is no whole PNG, JPEG or WebP picture.
        Refusal: too many pixels.
    """
    left = settings.max_request_pixels
    pictures = []
    for place, file in enumerate(files):
        picture = _open(file, place)
        width, height = picture.size
        left -= width * height
        if width * height > settings.max_pixels:
            told = f"image {place} has {width} x {height} pixels, at most {settings.max_pixels} are decoded"
            raise Refusal(413, "too_many_pixels", told)
        if left < 0:
            told = f"the images of one request have more than {settings.max_request_pixels} pixels together"
            raise Refusal(413, "too_many_pixels", told)
        if fit is not None:
            _check_aspect(picture.size, fit, place)
        whole = _whole(picture, place)
        pictures.append(whole if fit is None else fitted(whole, fit.native, fit.multiple))
    return pictures


def _check_aspect(size: tuple[int, int], fit: Fit, place: int) -> None:
    sides = fit_size(*size, fit.native, fit.multiple)
    if sides[0] * sides[1] > MOST_NATIVE_AREAS * fit.native**2:
        raise ImageError(f"image {place} of {size[0]} x {size[1]} pixels is too long and narrow for this model")


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
