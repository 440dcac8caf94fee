"""Rows of a table on disk, whatever its format: JSON lines, a JSON list, CSV, parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dina_lrm.data.sources.record import BadRow
from dina_lrm.errors import DataError

__all__ = ["SUFFIXES", "raw_rows"]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Found = tuple[int, dict[str, Any] | BadRow]


def raw_rows(path: Path, without: tuple[str, ...] = ()) -> Iterator[Found]:
    """Rows with their numbers, from 0.

    Args:
        path: of the table.
        without: columns of a parquet file that are not read: those that hold pictures.

    Yields:
        The number and the row, or what is wrong with it.

    Raises:
        DataError: not a table that can be read.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"a source is a {', '.join(SUFFIXES)} file, got {path}")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        if path.suffix == ".jsonl":
            yield from _json_lines(path)
        elif path.suffix == ".json":
            yield from _json_list(path)
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                yield from ((number, _filled(row)) for number, row in enumerate(csv.DictReader(file)))
        else:
            yield from _parquet(path, without)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _json_lines(path: Path) -> Iterator[Found]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(line for line in file if line.strip()):
            yield number, _as_row(path, number, line)


def _as_row(path: Path, number: int, line: str) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else BadRow(f"{path.name}:{number}", "the line is no JSON object")


def _json_list(path: Path) -> Iterator[Found]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold a JSON list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        yield number, row if isinstance(row, dict) else BadRow(f"{path.name}:{number}", "the entry is no JSON object")


def _parquet(path: Path, without: tuple[str, ...]) -> Iterator[Found]:
    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name not in without]
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    """A cell of a CSV file is text; an empty one says nothing, and a list stands there as JSON."""
    found: dict[str, Any] = {}
    for name, text in row.items():
        if not isinstance(text, str) or not text:
            continue
        found[name] = _json_or_text(text) if name in ("images", "votes") else text
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
