"""Preferences of people as data sets write them: JSON lines, CSV or parquet of our own form, HPDv3, HPDv2, ImageRewardDB,
Pick-a-Pic. Rows become `SourcePair`s whose pictures are still on disk; `dina_lrm.encoding` makes a preference folder of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dina_lrm.data.sources.formats import FORMATS, Place, SourceFormat
from dina_lrm.data.sources.record import BadRow, Cell, Picture, SourcePair
from dina_lrm.data.sources.tables import raw_rows
from dina_lrm.errors import DataError

__all__ = ["FORMATS", "BadRow", "Cell", "Picture", "SourceFormat", "SourcePair", "find_format", "read_source"]


def find_format(path: Path) -> str:
    """The format of a table, told by the keys of its first rows.

    Raises:
        DataError: none of ours.
    """
    seen: list[str] = []
    for _, (number, row) in zip(range(100), raw_rows(path, _every_picture()), strict=False):
        if isinstance(row, BadRow):
            continue
        for name, known in FORMATS.items():
            if known.fits(row):
                return name
        seen = seen or [f"row {number} has {', '.join(sorted(map(str, row)))}"]
    expected = "; ".join(f"{name}: {' or '.join(', '.join(sorted(k)) for k in f.keys)}" for name, f in FORMATS.items())
    raise DataError(f"{path} is of no known format ({seen[0] if seen else 'no rows'}); known are {expected}")


def read_source(path: Path, root: Path | None = None, form: str | None = None) -> Iterator[SourcePair | BadRow]:
    """The comparisons of a table, in its order.

    Args:
        path: of the table.
        root: folder that paths of pictures are relative to; None takes the table's own.
        form: one of `FORMATS`; None tells it by the keys.

    Yields:
        Comparisons, and in their place the rows that say none although they should.

    Raises:
        DataError: the table cannot be read, or is of no known format.
    """
    form = form or find_format(path)
    if form not in FORMATS:
        raise DataError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    known = FORMATS[form]
    for number, row in raw_rows(path, known.pictures):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            yield from known.read(row, Place(path, number, root or path.parent))
        except KeyError as error:
            yield BadRow(f"{path.name}:{number}", f"{error.args[0]} is missing")
        except (DataError, TypeError, ValueError, IndexError) as error:
            yield BadRow(f"{path.name}:{number}", str(error))


def _every_picture() -> tuple[str, ...]:
    return tuple(name for known in FORMATS.values() for name in known.pictures)
