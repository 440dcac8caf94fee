"""metrics.jsonl: one JSON object a line, always written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from dina_lrm.runtime.files import atomic_write

__all__ = ["MetricsLog", "read_metrics"]

Row = Mapping[str, int | float | str | None]


def read_metrics(path: Path) -> list[dict[str, int | float | str | None]]:
    """The whole rows of a log; the torn last line of a killed run is left out."""
    rows: list[dict[str, int | float | str | None]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class MetricsLog:
    """Appends rows to a file, each line on disk as soon as it is written.

    Opened for a run that resumes at `step`, it first drops every row of a later step, so that no step is logged twice.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        """Open for a run that continues after `step` optimiser steps; 0 starts afresh."""
        kept = [row for row in read_metrics(path) if _step(row) <= step] if step else []
        with atomic_write(path) as file:
            file.write("".join(_line(row) for row in kept).encode())
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Row) -> None:
        """Append one row; a number that is not finite becomes null, for JSON knows none."""
        self._file.write(_line(row))

    def extend(self, rows: Sequence[Row]) -> None:
        """Append several rows."""
        for row in rows:
            self.write(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _step(row: Row) -> float:
    step = row.get("step")
    return step if isinstance(step, int | float) else 0


def _line(row: Row) -> str:
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    return json.dumps(finite) + "\n"
