import numpy as np
import pytest
import torch
from PIL import Image

from dina_lrm.adapters.pictures import as_pictures
from dina_lrm.errors import ShapeError, ValueRangeError


def same(left, right):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(left, right, strict=True))


def test_every_form_of_a_batch_is_the_same_pictures(pictures, pixels):
    rows = np.stack([np.asarray(picture) for picture in pictures])
    for form in (pixels, pixels.double(), (pixels * 255).round().to(torch.uint8), rows, pictures, tuple(pictures)):
        assert same(as_pictures(form), pictures)


def test_floats_are_rounded_to_the_nearest_and_not_cut():
    assert np.asarray(as_pictures(torch.full((1, 3, 2, 2), 0.999))[0]).max() == 255
    assert np.asarray(as_pictures(torch.full((1, 3, 2, 2), 1.0039))[0]).max() == 255


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(1, 4, 2, 2), ShapeError, r"\[b 3 y x\], got \[1, 4, 2, 2\]"),
        (torch.zeros(3, 2, 2), ShapeError, r"got \[3, 2, 2\]"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), ShapeError, "int64"),
        (torch.full((1, 3, 2, 2), -1.0), ValueRangeError, "0..1, got -1"),
        (torch.full((1, 3, 2, 2), float("nan")), ValueRangeError, "nan"),
        (np.zeros((1, 2, 2, 3)), ShapeError, "float64"),
        (np.zeros((1, 3, 2, 2), dtype=np.uint8), ShapeError, r"\[b y x 3\]"),
        (["cat.png"], ShapeError, "str at place 0"),
    ],
)
def test_other_forms_are_refused_by_value(batch, error, message):
    with pytest.raises(error, match=message):
        as_pictures(batch)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_a_list_come_back_as_rgb_too(mode):
    [picture] = as_pictures([Image.new(mode, (4, 4))])
    assert picture.mode == "RGB"


def test_transparency_becomes_white():
    [picture] = as_pictures([Image.new("RGBA", (4, 4), (255, 0, 0, 0))])
    assert picture.getpixel((0, 0)) == (255, 255, 255)
