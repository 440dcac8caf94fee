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
    aligner = Aligner(config, on_evaluation=_draw)
    found = aligner.run(resume_of(resume))
    assert aligner.run_state is not None
    if not aligner.run_state.accelerator.is_main_process:
        return  # one of several speaks
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
    for gain in _gains(config.out, found.step):
        print(gain, file=sys.stderr)
    if page.exists():
        print(f"the page: {page}", file=sys.stderr)
    print(found.adapter)


def _gains(out: Path, step: int) -> list[str]:
    """What was measured of the adapter after so many updates, a line a reward and judge."""
    from dina_lrm.runtime.metrics_log import read_metrics

    looks = [row for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "evaluation"]
    found = [row for row in looks if row["step"] == step]
    if not step or not found:
        return []
    last = found[-1]
    names = [name for name in last if name.startswith("gain/") and name.count("/") == 1]
    return [
        f"gain of {name.removeprefix('gain/')} after {step} updates: {last[name]:+.3g}, "
        f"95 % {last[f'{name}/low']:+.3g} to {last[f'{name}/high']:+.3g}"
        for name in names
        if last[name] is not None
    ]


def _draw(out: Path) -> None:
    """Redraw the run's page; without matplotlib the pictures and the metrics are there all the same."""
    try:
        from dina_lrm.report.alignment import draw_run
    except ModuleNotFoundError:
        return
    draw_run(out)
