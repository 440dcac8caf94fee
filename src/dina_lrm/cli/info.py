"""`dina-lrm info`: what a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dina_lrm.cli.options import JsonOption
from dina_lrm.cli.output import print_json, print_tree

PREFERENCES_FILE = "dataset.json"


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Model folder, hub id, or preference folder.")],
    as_json: JsonOption = False,
) -> None:
    """What a model or preference folder is: backbone, taps, sizes, provenance, hashes, calibration."""
    values = _describe(path)
    if as_json:
        print_json(values)
    else:
        print_tree(values)


def _describe(path: str) -> dict[str, Any]:
    if (Path(path) / PREFERENCES_FILE).is_file():
        from dina_lrm.data import PreferenceData

        return PreferenceData.open(path).dataset_info()
    from dina_lrm.checkpoint import describe

    return describe(path)
