"""Comparisons of pictures on disk to a preference folder: whole, resumable, and honest about what was left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dina_lrm.backbones import BackboneConfig
from dina_lrm.data import PreferenceData
from dina_lrm.data.sources import BadRow, Picture, SourcePair
from dina_lrm.encoding import EncodingSettings, encode_images, encode_preferences
from dina_lrm.errors import DataError, ValueRangeError
from tests.training.fake import FakeBackbone, load_fake

CONFIG = BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None)
SETTINGS = EncodingSettings(part_size=2, batch_size=2)


@pytest.fixture
def backbone() -> FakeBackbone:
    return load_fake(CONFIG, "fake")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    found = []
    for i in range(6):
        path = tmp_path / "in" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 16), (40 * i, 0, 255 - 40 * i)).save(path)
        found.append(Picture(path.name, path))
    return found


@pytest.fixture
def pairs(pictures: list[Picture]) -> list[SourcePair]:
    a, b, c, d, e, f = pictures
    return [
        SourcePair("one", a, b, 3, 1),
        SourcePair("one", a, c, 2, 2, 1),
        SourcePair("two", d, a, 1, 0),
        SourcePair("three", e, f, 5, 0, split="test", kind="style"),
    ]


@pytest.fixture
def encode(backbone: FakeBackbone, tmp_path: Path) -> Callable[..., Any]:
    def run(source: list[SourcePair | BadRow], settings: EncodingSettings = SETTINGS, name: str = "out") -> Any:
        return encode_preferences(backbone, source, tmp_path / name, settings, {"source": "test"}, quiet=True)

    return run


def test_each_picture_is_encoded_once_and_the_folder_is_whole(
    encode: Callable[..., Any], pairs: list[SourcePair], pictures: list[Picture], backbone: FakeBackbone, tmp_path: Path
) -> None:
    report = encode(pairs)
    data = PreferenceData.open(tmp_path / "out")
    data.verify()
    assert report.pairs == {"train": 3, "test": 1} and (report.pictures, report.candidates) == (6, 7)
    expected = encode_images(backbone, [picture.file for picture in pictures]).half().float()
    assert torch.equal(data.latents(range(6)), expected)
    table = data.pairs("train")
    assert table.chosen == ["0.png", "0.png", "3.png"] and table.rejected == ["1.png", "2.png", "0.png#1"]
    assert table.target.tolist() == [0.75, 0.5, 1.0] and table.rejected_row.tolist() == [1, 2, 0]
    assert data.preview("0.png#1").size == (20, 16)
    assert data.info["backbone"]["class"] == backbone.signature()["class"] and data.info["about"]["source"] == "test"
    assert data.pairs("test").kind == ["style"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_killed_work_goes_on_where_it_stopped(
    encode: Callable[..., Any], pairs: list[SourcePair], backbone: FakeBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = backbone.encode_images, [0]

    def stopping(pixels: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return whole(pixels)

    monkeypatch.setattr(backbone, "encode_images", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode(pairs)
    first = encode(pairs)  # goes on with the third part only
    assert calls[0] == 4
    monkeypatch.setattr(backbone, "encode_images", whole)
    second = encode(pairs, name="again")
    one, other = (PreferenceData.open(report.folder).info["sha256"] for report in (first, second))
    assert one == other


def test_other_pictures_or_sides_are_no_continuation(
    encode: Callable[..., Any], pairs: list[SourcePair], backbone: FakeBackbone, tmp_path: Path
) -> None:
    encode(pairs)
    report = encode(pairs[:1])
    assert report.pictures == 2
    before = PreferenceData.open(tmp_path / "out").info["backbone"]["latent_shape"]
    assert encode(pairs, EncodingSettings(side=2 * backbone.native_size)).pictures == 6
    after = PreferenceData.open(tmp_path / "out").info["backbone"]["latent_shape"]
    assert after == [before[0], 2 * before[1], 2 * before[2]]


def test_faults_are_counted_and_their_pairs_left_out(
    encode: Callable[..., Any], pairs: list[SourcePair], pictures: list[Picture]
) -> None:
    pictures[2].file.write_bytes(b"no picture")
    pictures[4].file.unlink()
    source = [BadRow("t:0", "prompt is missing"), *pairs, BadRow("t:9", "prompt is missing")]
    report = encode(source, EncodingSettings(max_errors=4))
    assert report.errors == {"prompt is missing": 2, "there is no such picture": 1, "the picture cannot be read": 1}
    assert report.lost_pairs == 2 and report.pairs == {"train": 2}
    assert "2 x prompt is missing (first: t:0)" in report.told()
    assert report.as_json()["errors"]["prompt is missing"] == 2


def test_one_fault_too_many_ends_the_work_and_says_how_to_go_on(
    encode: Callable[..., Any], pairs: list[SourcePair], pictures: list[Picture], tmp_path: Path
) -> None:
    pictures[2].file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="--max-errors"):
        encode(pairs)
    assert not (tmp_path / "out").exists()
    assert encode(pairs, EncodingSettings(part_size=2, batch_size=2, max_errors=1)).errors.total() == 1


def test_a_source_without_a_sound_pair(
    encode: Callable[..., Any], pairs: list[SourcePair], pictures: list[Picture]
) -> None:
    with pytest.raises(DataError, match="empty"):
        encode([])
    for picture in pictures:
        picture.file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no comparison is left"):
        encode(pairs, EncodingSettings(max_errors=99))


def test_two_pictures_of_one_name_are_two(encode: Callable[..., Any], pictures: list[Picture], tmp_path: Path) -> None:
    """Two tables in two folders may both have an `img/a.png`."""
    a, b = (Picture("img/a.png", pictures[i].file) for i in (0, 1))
    other = Picture("img/b.png", pictures[2].file)
    report = encode([SourcePair("one", a, other, 1, 0), SourcePair("two", b, other, 1, 0)])
    data = PreferenceData.open(tmp_path / "out")
    assert report.pictures == 3
    assert data.pairs("train").chosen == ["img/a.png", "img/a.png (2)"]
    assert data.pairs("train").chosen_row.tolist() == [0, 2]


def test_one_picture_spelled_in_two_ways_is_one(encode: Callable[..., Any], pictures: list[Picture]) -> None:
    a, b = pictures[:2]
    again = Picture("again", a.file.parent / ".." / a.file.parent.name / a.file.name)
    assert encode([SourcePair("one", a, b, 1, 0), SourcePair("two", again, b, 1, 0)]).pictures == 2


def test_prompts_are_held_out_by_their_words(encode: Callable[..., Any], pictures: list[Picture]) -> None:
    source = [SourcePair(f"prompt {i}", *pictures[:2], 1, 0) for i in range(200)]
    counts = encode(source, EncodingSettings(held_out=0.25)).pairs
    assert sum(counts.values()) == 200 and 25 < counts["validation"] < 75


def test_settings_that_cannot_be(encode: Callable[..., Any], pairs: list[SourcePair], tmp_path: Path) -> None:
    for wrong in ({"held_out": 1.0}, {"split": "../x"}, {"batch_size": 0}):
        with pytest.raises(ValueRangeError):
            EncodingSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match="multiple"):
        encode(pairs, EncodingSettings(side=7))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"thesis\.txt"):
        encode(pairs)
