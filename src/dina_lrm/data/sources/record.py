"""What a source of preferences says, before anything is encoded."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from dina_lrm.errors import DataError, ImageError
from dina_lrm.images import open_image, to_rgb

__all__ = ["BadRow", "Cell", "Picture", "SourcePair", "decided"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value of a parquet file.

    Attributes:
        row: of the whole file.
        column: its name.
    """

    row: int
    column: str


@dataclass(frozen=True)
class Picture:
    """Where the bytes of a picture lie; nothing is read until it is opened.

    Attributes:
        name: for people; two pictures of different folders may share one.
        file: the picture, or the parquet file that holds it.
        cell: its place in the parquet file.
        uid: that the source itself tells it by, wherever it stands.
    """

    name: str
    file: Path
    cell: Cell | None = None
    uid: str | None = None

    @property
    def key(self) -> tuple[str | Path, Cell | None]:
        """What two pictures share that are one: the source's own uid, or else where the bytes lie."""
        return (_resolved(self.file), self.cell) if self.uid is None else (self.uid, None)

    def open(self) -> Image.Image:
        """Read it whole, RGB.

        Raises:
            ImageError: missing, or no picture.
        """
        if self.cell is None:
            return open_image(self.file)
        content = _cell(self.file, self.cell)
        if not isinstance(content, bytes):
            raise ImageError(f"picture {self.name!r} of {self.file} has no bytes in column {self.cell.column!r}")
        try:
            with Image.open(io.BytesIO(content)) as picture:
                return to_rgb(ImageOps.exif_transpose(picture))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"picture {self.name!r} of {self.file} cannot be read: {error}") from error


@dataclass(frozen=True)
class SourcePair:
    """A labelled comparison of two pictures.

    Attributes:
        prompt: what was asked for.
        chosen: the picture with more votes; either at equal votes.
        rejected: the other.
        votes_chosen: how many preferred `chosen`.
        votes_rejected: how many preferred `rejected`.
        votes_tied: how many saw no difference.
        split: that the source puts it in; empty if it says none.
        kind: what tells the two apart.
    """

    prompt: str
    chosen: Picture
    rejected: Picture
    votes_chosen: int
    votes_rejected: int
    votes_tied: int = 0
    split: str = ""
    kind: str = "mixed"


@dataclass(frozen=True)
class BadRow:
    """A row that says no comparison.

    Attributes:
        place: file and row.
        reason: what is wrong, in words that rows with the same fault share.
    """

    place: str
    reason: str


def decided(
    prompt: object, a: Picture, b: Picture, votes: tuple[int, int, int], split: str = "", kind: str = "mixed"
) -> SourcePair:
    """A pair whose chosen side is the one with more votes.

    Args:
        prompt: of both.
        a: one picture.
        b: the other.
        votes: for a, for b, and for neither.
        split: that the source names.
        kind: what tells the two apart.

    Returns:
        The pair.

    Raises:
        DataError: no prompt, one picture twice, or votes that cannot be.
    """
    for_a, for_b, tied = votes
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError("the prompt is empty or no text")
    if a.key == b.key:
        raise DataError("a picture is compared with itself")
    if min(votes) < 0 or sum(votes) == 0:
        raise DataError("nobody voted, or votes are negative")
    if for_a >= for_b:
        return SourcePair(prompt, a, b, for_a, for_b, tied, split, kind)
    return SourcePair(prompt, b, a, for_b, for_a, tied, split, kind)


@lru_cache(maxsize=65536)
def _resolved(path: Path) -> Path:
    return path.resolve()


@lru_cache(maxsize=4)
def _open(path: Path) -> tuple[pq.ParquetFile, list[int]]:
    file = pq.ParquetFile(path)
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts


@lru_cache(maxsize=4)  # pictures are asked for in the order of the rows, two columns at a time
def _group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    return _open(path)[0].read_row_group(group, columns=[column])[column]


def _cell(path: Path, cell: Cell) -> object:
    _, starts = _open(path)
    group = next(i for i, stop in enumerate(starts[1:]) if cell.row < stop)
    value: object = _group(path, group, cell.column)[cell.row - starts[group]].as_py()
    # Pictures of the `datasets` library are a struct of bytes and path.
    return value.get("bytes") if isinstance(value, dict) else value
