"""What the studies share: runs that are made once, and what they measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dina_lrm.alignment import AlignConfig, Aligner
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.cli.recipes import find_recipe
from dina_lrm.config import apply_overrides
from dina_lrm.errors import ConfigError
from dina_lrm.runtime.files import atomic_write
from dina_lrm.training import TrainConfig, Trainer

__all__ = ["SMALL", "align_once", "fingerprint", "measurements_of", "train_once"]

MARK = "weights.txt"
QUICKLY = ("num_steps=6", "validation.every=0")
SMALL = "<b>A small run, to see that all of it works: its numbers say nothing, and some sentences here are about the full one.</b>"


def fingerprint(*parts: object) -> str:
    """A name for what something was made of: the weights below folders, and everything else as it is written."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for path in sorted(part.rglob("*.safetensors")):
                found.update(path.read_bytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:16]


def align_once(config: AlignConfig, reward: Path) -> None:
    """Make a run, or go on with it, unless it is finished.

    Args:
        config: of the run.
        reward: folder of the weights that reward it.

    Raises:
        ConfigError: a run of other settings, or of other weights, lies where this one would.
    """
    mark, weights = config.out / MARK, fingerprint(reward)
    other = mark.is_file() and mark.read_text(encoding="utf-8") != weights
    finished = (config.out / "adapter").is_dir()
    if finished and not other:
        told = json.loads((config.out / "config.json").read_text(encoding="utf-8"))
        other = told != config.model_dump(mode="json") or not mark.is_file()
    if other:
        raise ConfigError(
            f"{config.out} was run with other settings or weights than the study has now; remove that folder"
        )
    if not finished:
        with atomic_write(mark) as file:
            file.write(weights.encode())
        print(config.out.name, flush=True)
        Aligner(config).run(resume="auto")


def train_once(out: Path, recipe: str, quick: bool, *changes: str) -> Path:
    """A reward model of a recipe, trained when first asked for; its folder.

    Args:
        out: of the training.
        recipe: by name.
        quick: a few steps, to see that it works.
        changes: of the recipe, as `--set` takes them.
    """
    model = out / "model"
    if not (model / "config.json").is_file():
        asked = [f"out={out}", *changes, *(QUICKLY if quick else ())]
        Trainer(apply_overrides(find_recipe(recipe, TrainConfig), asked)).run(resume="auto")
    return model


def measurements_of(run: Path) -> list[Measurement]:
    """What a run measured, in order."""
    return [Measurement.load(folder) for folder in sorted((run / "measurements").glob("step-*"))]
