"""`dina-lrm convert`: the authors' checkpoint layout to ours, and back."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import JsonOption
from dina_lrm.cli.output import print_json, print_tree


class Layout(StrEnum):
    """How a model lies on disk."""

    OURS = "dina_lrm"
    PUBLISHED = "published"


def convert(
    source: Annotated[str, typer.Argument(metavar="PUBLISHED", help="Model folder or hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    to: Annotated[Layout, typer.Option("--to", help="published: from our layout back to the authors'.")] = Layout.OURS,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="B", help="Base folder or hub id to name, if the model's own name tells nothing."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the authors' checkpoint layout to ours (safetensors) or back; weights keep their bytes, no base is loaded."""
    from dina_lrm.checkpoint import convert_model

    done = asdict(convert_model(source, out, to.value, base))
    if as_json:
        print_json(done)
    else:
        print_tree(done)
