"""`dina-lrm verify`: is a folder whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.info import PREFERENCES_FILE
from dina_lrm.cli.options import JsonOption
from dina_lrm.cli.output import print_json
from dina_lrm.errors import InputError, WorkError


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Model or preference folder.")],
    as_json: JsonOption = False,
) -> None:
    """Check a model or preference folder whole; exit 1 and the first fault if it is not."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; give a model or preference folder")
    fault, hashed = _check(path)
    if as_json:
        print_json({"path": str(path), "whole": fault is None, "fault": fault, "hashed": hashed})
    elif fault is None:
        untold = "" if hashed else "; it says no hashes, so a changed weight would not be noticed"
        print(f"{path} is whole{untold}")
    if fault is not None:
        raise WorkError(fault)


def _check(path: Path) -> tuple[str | None, bool]:
    """The first fault, and whether contents were held against hashes."""
    try:
        if (path / PREFERENCES_FILE).is_file():
            from dina_lrm.data import PreferenceData

            PreferenceData.open(path).verify()
            return None, True
        from dina_lrm.checkpoint import verify as verify_model

        return None, verify_model(path)
    except InputError as error:
        return str(error), False
