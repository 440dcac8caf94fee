"""The data sets whose rows we read: each is the keys that tell it, and a function from a row to its comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dina_lrm.data.sources.record import Cell, Picture, SourcePair, decided
from dina_lrm.errors import DataError

__all__ = ["FORMATS", "Place", "SourceFormat"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a row stands.

    Attributes:
        file: the table.
        row: its number in the table, from 0.
        root: folder that the paths of pictures are relative to.
    """

    file: Path
    row: int
    root: Path

    def picture(self, name: object) -> Picture:
        """A picture by its path.

        Raises:
            DataError: the path is empty or no text.
        """
        if not isinstance(name, str) or not name.strip():
            raise DataError("the path of a picture is empty or no text")
        return Picture(name, self.root / name)


@dataclass(frozen=True)
class SourceFormat:
    """How one data set writes its comparisons.

    Attributes:
        keys: that every row has, in each of its variants; by them it is told from the others.
        read: a row to its comparisons; none where nobody judged.
        pictures: columns of a parquet file that hold pictures.
    """

    keys: tuple[frozenset[str], ...]
    read: Callable[[Row, Place], Sequence[SourcePair]]
    pictures: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        """Whether a row is of this format."""
        return any(keys <= row.keys() for keys in self.keys)


def read_rows(row: Row, place: Place) -> Sequence[SourcePair]:
    """Our own: `{prompt, chosen, rejected}` or `{prompt, images, votes}`.

    With `votes_chosen`, `votes_rejected`, `votes_tied` (1, 0, 0 where they are missing) or a vote count for each of two or
    more images; and `split` and `kind` where they matter.
    """
    rest = {"split": _text(row, "split", ""), "kind": _text(row, "kind", "mixed")}
    if rest["split"] and not rest["split"].isidentifier():
        raise DataError("a split's name must be letters, digits and underscores")
    if "images" not in row:
        tied = _count(row.get("votes_tied", 0))
        votes = (_count(row.get("votes_chosen", 0 if tied else 1)), _count(row.get("votes_rejected", 0)), tied)
        return [decided(row["prompt"], place.picture(row["chosen"]), place.picture(row["rejected"]), votes, **rest)]
    images, counts = _list(row, "images"), [_count(vote) for vote in _list(row, "votes")]
    if len(images) < 2 or len(images) != len(counts):
        raise DataError("images and votes must be lists of one length, two or more")
    return [
        decided(row["prompt"], place.picture(a), place.picture(b), (for_a, for_b, 0), **rest)
        for (a, for_a), (b, for_b) in combinations(zip(images, counts, strict=True), 2)
        if for_a + for_b
    ]


def read_hpdv3(row: Row, place: Place) -> Sequence[SourcePair]:
    """HPDv3: `{prompt, path1, path2, choice_dist, ...}`, path1 preferred, choice_dist the votes for each."""
    votes = row.get("choice_dist")
    for_a, for_b = (1, 0) if not votes else (_count(votes[0]), _count(votes[1]))
    return [decided(row["prompt"], place.picture(row["path1"]), place.picture(row["path2"]), (for_a, for_b, 0))]


def read_hpdv2(row: Row, place: Place) -> Sequence[SourcePair]:
    """HPDv2: training rows `{prompt, file_path, human_preference}`, test rows `{prompt, image_path, rank}`."""
    if "rank" in row:
        return _ranked(row["prompt"], _list(row, "image_path"), _list(row, "rank"), place)
    paths, votes = _list(row, "file_path"), [_count(vote) for vote in _list(row, "human_preference")]
    if len(paths) != 2 or len(votes) != 2:
        raise DataError("file_path and human_preference must be of two pictures")
    return [decided(row["prompt"], place.picture(paths[0]), place.picture(paths[1]), (votes[0], votes[1], 0))]


def read_image_reward(row: Row, place: Place) -> Sequence[SourcePair]:
    """ImageRewardDB: `{prompt, generations, ranking}`, rank 1 the best, equal ranks a tie."""
    return _ranked(row["prompt"], _list(row, "generations"), _list(row, "ranking"), place)


def read_pick_a_pic(row: Row, place: Place) -> Sequence[SourcePair]:
    """Pick-a-Pic: `{caption, jpg_0, jpg_1, label_0, label_1}`, labels of one half a tie; rows without a label say nothing."""
    if not row.get("has_label", True):
        return []
    labels = (float(row["label_0"]), float(row["label_1"]))
    votes = {(1.0, 0.0): (1, 0, 0), (0.0, 1.0): (0, 1, 0), (0.5, 0.5): (0, 0, 1)}.get(labels)
    if votes is None:
        raise DataError("labels must be 1 and 0, or 0.5 twice")
    uids = [_text(row, f"image_{i}_uid", "") for i in (0, 1)]
    sides = [
        Picture(uid or f"{place.file.stem}-{place.row}-{i}", place.file, Cell(place.row, f"jpg_{i}"), uid or None)
        for i, uid in enumerate(uids)
    ]
    return [decided(row["caption"], sides[0], sides[1], votes)]


FORMATS = {
    "rows": SourceFormat(
        (frozenset({"prompt", "chosen", "rejected"}), frozenset({"prompt", "images", "votes"})), read_rows
    ),
    "hpdv3": SourceFormat((frozenset({"prompt", "path1", "path2"}),), read_hpdv3),
    "hpdv2": SourceFormat(
        (frozenset({"prompt", "file_path", "human_preference"}), frozenset({"prompt", "image_path", "rank"})),
        read_hpdv2,
    ),
    "image_reward": SourceFormat((frozenset({"prompt", "generations", "ranking"}),), read_image_reward),
    "pick_a_pic": SourceFormat(
        (frozenset({"caption", "label_0", "label_1"}),), read_pick_a_pic, pictures=("jpg_0", "jpg_1")
    ),
}


def _ranked(prompt: object, paths: Sequence[object], ranks: Sequence[object], place: Place) -> Sequence[SourcePair]:
    """All pairs of a ranking, lower the better."""
    numbers = [_count(rank) for rank in ranks]
    if len(paths) < 2 or len(paths) != len(numbers):
        raise DataError("pictures and ranks must be lists of one length, two or more")
    return [
        decided(prompt, place.picture(a), place.picture(b), (int(at_a < at_b), int(at_b < at_a), int(at_a == at_b)))
        for (a, at_a), (b, at_b) in combinations(zip(paths, numbers, strict=True), 2)
    ]


def _list(row: Row, name: str) -> Sequence[object]:
    value = row.get(name)
    if not isinstance(value, list):
        raise DataError(f"{name} must be a list")
    return value


def _text(row: Row, name: str, missing: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) and value else missing


def _count(value: object) -> int:
    """A number of votes or a rank: whole, however it is written."""
    try:
        number = float(value)  # type: ignore[arg-type]
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError("a number of votes or a rank is no whole number")
