"""Pictures from strangers."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from dina_lrm.errors import ImageError
from dina_lrm.images import to_pixels, to_rgb
from dina_lrm.serve.pictures import Fit, decode_base64, fitted_pixels, open_pictures
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.settings import ServeSettings
from tests.serve.serving import file_of, random_picture

SETTINGS = ServeSettings()
FIT = Fit(64, 16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    picture = random_picture(0, 48, 32)
    picture = Image.fromarray(np.full((32, 48), 40_000, np.uint16)) if mode == "I;16" else picture.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    (found,) = open_pictures([file_of(picture, kind)], FIT)
    assert found.mode == "RGB" and found.size == (48, 32)


def test_a_fitted_picture_is_what_the_local_model_would_see() -> None:
    picture = random_picture(1, 200, 120)
    (found,) = open_pictures([file_of(picture)], FIT)
    assert np.array_equal(
        to_pixels(to_rgb(picture), 64, 16).numpy(), np.asarray(found).transpose(2, 0, 1) / np.float32(255)
    )
    assert fitted_pixels([file_of(picture)], FIT, SETTINGS) == found.width * found.height


def test_a_picture_is_turned_upright() -> None:
    picture, exif = random_picture(2, 48, 32), Image.Exif()
    exif[0x0112] = 6
    target = io.BytesIO()
    picture.save(target, "JPEG", exif=exif)
    assert open_pictures([target.getvalue()], FIT)[0].size == (32, 48)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_not_opened(kind: str) -> None:
    with pytest.raises(ImageError, match="image 0 is not a PNG, JPEG or WebP"):
        open_pictures([file_of(random_picture(0), kind)], FIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_cut_of_a_file_is_told(kind: str) -> None:
    file = file_of(random_picture(0, 32, 32), kind)
    for end in range(0, len(file) - 20, 37):
        with pytest.raises(ImageError):
            open_pictures([file[:end]], FIT)


def test_size_is_judged_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    large, huge, narrow = file_of_size(6000, 6000), file_of_size(2**31 - 1, 2**31 - 1), file_of_size(1, 1_000_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(Refusal, match="6000 x 6000"):
        fitted_pixels([large], FIT, SETTINGS)
    with pytest.raises(Refusal, match="larger than any picture"):
        fitted_pixels([huge], FIT, SETTINGS)
    with pytest.raises(ImageError, match="too long and narrow"):
        fitted_pixels([narrow], FIT, SETTINGS)


def file_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so."""
    file = bytearray(file_of(random_picture(0, 8, 8)))
    file[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    return bytes(file)


def test_base64_is_strict_and_takes_data_urls() -> None:
    text = base64.b64encode(b"file").decode()
    assert decode_base64(text, 0) == decode_base64(f"data:image/png;base64,{text}", 0) == b"file"
    for wrong in ("%%%", "abc", "ä", f" {text}", f"data:text/html;base64,{text}"):
        with pytest.raises(ImageError, match="image 3 is not base64"):
            decode_base64(wrong, 3)
