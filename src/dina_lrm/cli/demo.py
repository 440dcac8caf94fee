"""`dina-lrm demo`: the main job on the embedded emoji world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import JsonOption
from dina_lrm.cli.output import print_json


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("runs/demo"),
    fast: Annotated[bool, typer.Option("--fast", help="About a minute: fewer steps, rougher numbers.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of initialisation, order and noise.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train, measure and use a reward model on the embedded emoji world; ends with the path of report.html."""
    from dina_lrm.demo import run_demo

    report = run_demo(out, fast=fast, seed=seed)
    if as_json:
        print_json({"report": str(report), "results": str(report.with_name("results.json"))})
    else:
        print(report)
