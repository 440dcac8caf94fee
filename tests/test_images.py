import pytest
import torch
from PIL import Image

from dina_lrm.errors import ImageError, ShapeError
from dina_lrm.images import fit_size, group_by_size, open_image, to_pixels, to_square_pixels


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_what_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match="a.png"):
        open_image(path)


def test_a_truncated_picture_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ImageError, match="a.png"):
        open_image(path)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (64, 64)), ((512, 512), (64, 64)), ((100, 50), (96, 48)), ((20, 20), (16, 16)), ((5, 400), (16, 400))],
)
def test_large_pictures_shrink_to_the_native_area_and_small_ones_stay(size, expected):
    assert fit_size(*size, native=64, multiple=16) == expected


def test_pixels_are_the_bytes_over_255():
    pixels = to_pixels(Image.new("RGB", (16, 16), (255, 0, 51)), 64, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_pictures_of_one_size_stand_together():
    wide, square = Image.new("RGB", (64, 32)), Image.new("L", (16, 16), 255)
    groups = group_by_size([wide, square, wide], 64, 16)
    assert [(places, tuple(pixels.shape)) for places, pixels in groups] == [
        ([0, 2], (2, 3, 32, 64)),
        ([1], (1, 3, 16, 16)),
    ]
    assert torch.equal(groups[1][1], torch.ones(1, 3, 16, 16))
    with pytest.raises(ShapeError, match="none"):
        group_by_size([], 64, 16)
    for wrong in (square, ["a.png"], "a.png"):
        with pytest.raises(ShapeError, match="a list of PIL pictures"):
            group_by_size(wrong, 64, 16)


def test_the_central_square_is_cut():
    picture = Image.new("RGB", (48, 16))
    picture.paste((255, 255, 255), (16, 0, 32, 16))
    assert torch.equal(to_square_pixels(picture, 16), torch.ones(3, 16, 16))


def test_a_photograph_taken_sideways_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 40)
