"""Rows of every data set, as its publishers write them, become the same comparisons."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dina_lrm.data.sources import BadRow, SourcePair, find_format, read_source
from dina_lrm.errors import DataError, ImageError

Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def table(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return path

    return table


def told(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    """Prompt, names and votes of each comparison; the reason of each bad row."""
    return [
        (row.reason,)
        if isinstance(row, BadRow)
        else (row.prompt, row.chosen.name, row.rejected.name, row.votes_chosen, row.votes_rejected, row.votes_tied)
        for row in read_source(path, **options)
    ]


def test_our_rows_with_and_without_votes(write: Write) -> None:
    path = write(
        "pairs.jsonl",
        [
            {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png"},
            {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png", "votes_chosen": 2, "votes_rejected": 5},
            {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png", "votes_tied": 3, "split": "test"},
        ],
    )
    assert find_format(path) == "rows"
    assert told(path) == [
        ("a cat", "a.png", "b.png", 1, 0, 0),
        ("a cat", "b.png", "a.png", 5, 2, 0),
        ("a cat", "a.png", "b.png", 0, 0, 3),
    ]
    last = list(read_source(path))[-1]
    assert isinstance(last, SourcePair) and last.split == "test" and last.chosen.file == path.parent / "a.png"


def test_votes_for_several_images_make_all_their_pairs(write: Write) -> None:
    path = write("pairs.parquet", [{"prompt": "p", "images": ["a", "b", "c"], "votes": [0, 2, 0]}])
    assert told(path) == [("p", "b", "a", 2, 0, 0), ("p", "b", "c", 2, 0, 0)]


def test_csv_cells_are_text_and_lists_are_json(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected,votes_chosen,votes_rejected\n"a, b",x.png,y.png,4.0,1\np,x.png,y.png,,\n')
    assert told(path) == [("a, b", "x.png", "y.png", 4, 1, 0), ("p", "x.png", "y.png", 1, 0, 0)]
    path.write_text('prompt,images,votes\np,"[""x"", ""y""]","[1, 3]"\np,"[""x","[1]"\n')
    assert told(path) == [("p", "y", "x", 3, 1, 0), ("images must be a list",)]


def test_hpdv3(write: Write) -> None:
    row = {"prompt": "p", "path1": "1.jpg", "path2": "2.jpg", "model1": "m", "model2": "n", "confidence": 0.99}
    path = write("test.json", [{**row, "choice_dist": [12, 3]}, row])
    assert find_format(path) == "hpdv3"
    assert told(path) == [("p", "1.jpg", "2.jpg", 12, 3, 0), ("p", "1.jpg", "2.jpg", 1, 0, 0)]


def test_hpdv2_trains_on_pairs_and_tests_on_ranks(write: Write) -> None:
    train = write("train.json", [{"prompt": "p", "file_path": ["1", "2"], "human_preference": [0, 1]}])
    assert find_format(train) == "hpdv2" and told(train) == [("p", "2", "1", 1, 0, 0)]
    test = write(
        "test.json", [{"prompt": "p", "image_path": ["1", "2", "3"], "rank": [2, 1, 2], "raw_annotations": []}]
    )
    assert find_format(test) == "hpdv2"
    assert told(test) == [("p", "2", "1", 1, 0, 0), ("p", "1", "3", 0, 0, 1), ("p", "2", "3", 1, 0, 0)]


def test_image_reward(write: Write) -> None:
    path = write("test.json", [{"id": "x", "prompt": "p", "generations": ["a", "b"], "ranking": [1, 1]}])
    assert find_format(path) == "image_reward"
    assert told(path) == [("p", "a", "b", 0, 0, 1)]


def picture_bytes(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def test_pick_a_pic_keeps_its_pictures_in_the_table(write: Write) -> None:
    rows = [
        {
            "caption": f"p{i}",
            "jpg_0": picture_bytes("red"),
            "jpg_1": picture_bytes("blue"),
            "image_0_uid": f"u{i}",
            "image_1_uid": f"v{i}",
            "label_0": label,
            "label_1": 1 - label,
            "has_label": i != 3,
        }
        for i, label in enumerate([1.0, 0.0, 0.5, 1.0, 0.25])
    ]
    path = write("part.parquet", rows)
    assert find_format(path) == "pick_a_pic"
    assert told(path) == [
        ("p0", "u0", "v0", 1, 0, 0),
        ("p1", "v1", "u1", 1, 0, 0),
        ("p2", "u2", "v2", 0, 0, 1),
        ("labels must be 1 and 0, or 0.5 twice",),
    ]
    second = [row for row in read_source(path) if isinstance(row, SourcePair)][1]
    assert second.chosen.open().getpixel((0, 0)) == (0, 0, 255)
    assert second.rejected.open().getpixel((0, 0)) == (255, 0, 0)


def test_pictures_are_one_by_their_uid_or_by_their_place(write: Write) -> None:
    row = {"caption": "p", "label_0": 1.0, "label_1": 0.0, "jpg_0": b"a", "jpg_1": b"b"}
    with_uid = {**row, "image_0_uid": "u", "image_1_uid": "v"}
    for rows, same in (([with_uid, with_uid], True), ([row, row], False)):
        first, second = read_source(write("part.parquet", rows))
        assert isinstance(first, SourcePair) and isinstance(second, SourcePair)
        assert (first.chosen.key == second.chosen.key) is same
    unnamed = next(iter(read_source(write("none.parquet", [{**row, "image_0_uid": None, "image_1_uid": None}]))))
    assert isinstance(unnamed, SourcePair) and unnamed.chosen.name == "none-0-0"


def test_a_cell_without_a_picture_is_told(write: Write) -> None:
    row = {"caption": "p", "label_0": 1.0, "label_1": 0.0, "image_0_uid": "u", "image_1_uid": "v"}
    path = write("part.parquet", [{**row, "jpg_0": b"no picture", "jpg_1": None}])
    pair = next(iter(read_source(path)))
    assert isinstance(pair, SourcePair)
    with pytest.raises(ImageError, match="'u'"):
        pair.chosen.open()
    with pytest.raises(ImageError, match="no bytes"):
        pair.rejected.open()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected is missing"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "with itself"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "path of a picture"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "votes_chosen": 1.5}, "no whole number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "votes_chosen": -1}, "negative"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "votes_chosen": 0}, "nobody voted"),
        ({"prompt": "p", "images": ["a"], "votes": [1]}, "two or more"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "split": "../x"}, "split's name"),
    ],
)
def test_a_row_that_says_nothing_is_told_and_the_others_are_read(
    write: Write, row: dict[str, Any], reason: str
) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    found = list(read_source(write("pairs.jsonl", [good, row, good])))
    assert [isinstance(one, BadRow) for one in found] == [False, True, False]
    assert isinstance(found[1], BadRow) and reason in found[1].reason and found[1].place == "pairs.jsonl:1"


def test_lines_and_entries_that_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prom\n[1]\n')
    assert [len(one) for one in told(path)] == [6, 1, 1]


def test_files_that_are_no_source(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match="no file"):
        find_format(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"\.jsonl"):
        find_format(tmp_path / "pairs.txt")
    with pytest.raises(DataError, match="known are rows"):
        find_format(write("odd.jsonl", [{"text": "x"}]))
    with pytest.raises(DataError, match="must be one of"):
        list(read_source(write("odd.jsonl", []), form="coco"))
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(DataError, match="not JSON"):
        find_format(tmp_path / "bad.json")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="parquet"):
        find_format(tmp_path / "bad.parquet")
