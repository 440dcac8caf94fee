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
        print_tree(_for_people(values))


def _for_people(values: dict[str, Any]) -> dict[str, Any]:
    """A fitted calibration is a table of numbers: a line each."""
    found = values.get("calibration")
    if not isinstance(found, dict) or not found.get("levels"):
        return values
    law = found["parameters"]
    parameters = {
        told: f"{law[name]:.3g} +- {law[f'{name}_error']:.2g}"
        for told, name in (("k", "scale"), ("clean_variance", "min_variance"))
        if law
    }
    short = {name: found[name] for name in ("fitted_on", "pairs", "prompts", "draws", "seed", "kind", "disagreement")}
    short |= {"not_judged": found["not_judged"]} if found.get("not_judged") else {}
    short |= {
        **parameters,
        "levels": {
            f"sigma {level['sigma']:g}": f"reward {'logit ' if found['kind'] == 'logistic' else ''}"
            f"(utility - {level['centre']:.4g}) / {level['spread']:.4g}, variance {level['deviation'] ** 2 / 2:.4g}"
            for level in found["levels"]
        },
        "probabilities": {row["label"]: _before_and_after(row) for row in found["quality"]},
    }
    return {**values, "calibration": short}


def _before_and_after(row: dict[str, Any]) -> str:
    before, after = row["before"], row["after"]
    told = (
        f"{name} {before[key]:.4f} to {'not judged' if after is None else format(after[key], '.4f')}"
        for name, key in (("ECE", "ece"), ("Brier", "brier"), ("NLL", "nll"))
    )
    return ", ".join(told) + f"; the truth itself would show an ECE of {row['ece_floor']:.4f}"


def _describe(path: str) -> dict[str, Any]:
    if (Path(path) / PREFERENCES_FILE).is_file():
        from dina_lrm.data import PreferenceData

        return PreferenceData.open(path).dataset_info()
    from dina_lrm.checkpoint import describe

    return describe(path)
