"""`dina-lrm train`: learn a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import JsonOption
from dina_lrm.cli.output import print_json


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|CONFIG", help="Name in recipes/, module:function, or a .py, .yaml or .json file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH.TO.KEY=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The same as --set out=DIR.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="auto|PATH", help="auto: from the last whole checkpoint, if any.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model; ends with the path of the model folder."""
    from dina_lrm.cli.recipes import read_recipe
    from dina_lrm.config import apply_overrides
    from dina_lrm.training import Trainer

    changes = [*(overrides or ()), *([f"out={json.dumps(str(out))}"] if out is not None else ())]
    config = apply_overrides(read_recipe(recipe), changes)
    model = Trainer(config).run(resume="auto" if resume == "auto" else None if resume is None else Path(resume))
    if as_json:
        print_json({"model": str(model), "out": str(config.out)})
    else:
        print(model)
