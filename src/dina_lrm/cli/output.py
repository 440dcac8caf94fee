"""What goes to stdout: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def print_json(row: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; JSON knows neither NaN nor infinity, and neither do our results."""
    print(json.dumps(row, allow_nan=False, default=str), flush=True)


def print_tree(values: Mapping[str, Any]) -> None:
    """Keys and values, nested ones indented; lists of plain values stay on their line."""
    for line in _lines(values, ""):
        print(line)


def _lines(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield f"{indent}{key}:"
            yield from _lines({f"[{i}]": item for i, item in enumerate(value)}, indent + "  ")
        else:
            yield f"{indent}{key}: {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == {} else str(value)
