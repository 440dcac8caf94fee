"""`dina-lrm align`: teach a generator by a reward."""

from __future__ import annotations

import sys
from pathlib import Path

from dina_lrm.cli.options import JsonOption, OutOption, RecipeArgument, ResumeOption, SetOption, resume_of
from dina_lrm.cli.output import print_json


def align(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a generator by a reward; ends with the path of the adapter, an ordinary LoRA for diffusers.

    OUT/index.html shows curves, pictures and what the monitor found; it is redrawn at each measurement.
    """
    from dina_lrm.alignment import AlignConfig, Aligner
    from dina_lrm.cli.recipes import read_recipe

    config = read_recipe(recipe, AlignConfig, overrides, out)
    found = Aligner(config, on_evaluation=_draw).run(resume_of(resume))
    if found.stopped is not None:
        print(f"the monitor {found.stopped}", file=sys.stderr)
    page = config.out / "index.html"
    if as_json:
        print_json(
            {
                "adapter": str(found.adapter),
                "step": found.step,
                "stopped": found.stopped,
                "out": str(config.out),
                "page": str(page) if page.exists() else None,
            }
        )
        return
    if page.exists():
        print(f"the page: {page}", file=sys.stderr)
    print(found.adapter)


def _draw(out: Path) -> None:
    """Redraw the run's page; without matplotlib the pictures and the metrics are there all the same."""
    try:
        from dina_lrm.report.alignment import draw_run
    except ModuleNotFoundError:
        return
    draw_run(out)
