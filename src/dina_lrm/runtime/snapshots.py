"""Snapshots: all that a run needs to go on as if it had never stopped.

    OUT/checkpoints/step-000500/
      state.json                step, progress (seconds, loss scale), identity of the run, hashes of the files below
      trainable.safetensors     raw float32 weights of what is trained
      ema.safetensors           their averages, unless the run has none
      optimiser.safetensors     AdamW's state, `INDEX.NAME`
      memory.safetensors        what else the run remembers, if anything

A folder of that name is whole: it is staged under another name and renamed. No random state is stored, for every draw
is a function of the seed and the step (`runtime.seeds`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dina_lrm.errors import CheckpointError, ConfigError
from dina_lrm.runtime.ema import Ema
from dina_lrm.runtime.files import atomic_folder, sha256_file

__all__ = [
    "Resumed",
    "Snapshot",
    "check_identity",
    "choose_snapshot",
    "find_snapshots",
    "load_snapshot",
    "prune_snapshots",
    "save_snapshot",
]

SCHEMA_VERSION = 2
STATE_FILE = "state.json"
CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Snapshot:
    """A whole snapshot on disk.

    Attributes:
        folder: where it lies.
        step: optimiser steps behind it.
    """

    folder: Path
    step: int


@dataclass(frozen=True)
class Resumed:
    """What a snapshot gave back beside weights and optimiser.

    Attributes:
        progress: JSON values.
        memory: tensors, empty where none were kept.
    """

    progress: dict[str, Any]
    memory: dict[str, Tensor]


def find_snapshots(folder: Path) -> list[Snapshot]:
    """The whole snapshots under a folder, earliest first."""
    if not folder.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(
        (Snapshot(path, int(match[1])) for match, path in matches if match and (path / STATE_FILE).is_file()),
        key=lambda snapshot: snapshot.step,
    )


def choose_snapshot(folder: Path, resume: Path | Literal["auto"] | None) -> Snapshot | None:
    """Where a run begins.

    Args:
        folder: where the run keeps its snapshots.
        resume: "auto" takes the last one if there is any; a path is a snapshot, or a run's folder, of which the last is
            taken; None starts afresh.

    Raises:
        ConfigError: a fresh start where another run has left snapshots.
        CheckpointError: nothing to resume at that path.
    """
    if isinstance(resume, Path):
        own = [s for s in find_snapshots(resume.parent) if s.folder.name == resume.name]
        found = own or find_snapshots(resume) or find_snapshots(resume / CHECKPOINTS)
        if not found:
            raise CheckpointError(f"{resume} holds no whole checkpoint; give a step-NNNNNN folder or the run's folder")
        return found[-1]
    found = find_snapshots(folder)
    if resume is None and found:
        raise ConfigError(
            f"{folder} holds checkpoints of an earlier run up to step {found[-1].step}; "
            'resume it with resume="auto" (--resume auto), or choose another out'
        )
    return found[-1] if found else None


def prune_snapshots(folder: Path, keep_last: int) -> None:
    """Remove all but the last, and what killed writers left."""
    for snapshot in find_snapshots(folder)[:-keep_last]:
        shutil.rmtree(snapshot.folder)
    for leftover in folder.glob(".step-*.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def save_snapshot(
    folder: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    optimiser: Optimizer,
    ema: Ema | None,
    identity: dict[str, Any],
    progress: dict[str, Any],
    memory: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Write a snapshot; it appears whole or not at all.

    Args:
        folder: that holds the snapshots.
        step: optimiser steps made.
        parameters: what is trained, by name.
        optimiser: AdamW over them.
        ema: their averages.
        identity: what must be the same for a run to go on from here, as JSON values.
        progress: what else the run must know to go on, as JSON values.
        memory: the same as tensors.
    """
    tensors: dict[str, dict[str, Tensor]] = {
        "trainable.safetensors": {name: p.detach() for name, p in parameters.items()},
        "optimiser.safetensors": {
            f"{index}.{name}": value
            for index, entry in optimiser.state_dict()["state"].items()
            for name, value in entry.items()
        },
    }
    if ema is not None:
        tensors["ema.safetensors"] = ema.state_dict()
    if memory:
        tensors["memory.safetensors"] = dict(memory)
    target = folder / f"step-{step:06d}"
    with atomic_folder(target) as staged:
        for name, values in tensors.items():
            save_file({key: value.cpu().contiguous() for key, value in values.items()}, staged / name)
        state = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "progress": progress,
            "torch": str(torch.__version__),
            "identity": identity,
            "files": {name: sha256_file(staged / name) for name in tensors},
        }
        (staged / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    return Snapshot(target, step)


def load_snapshot(
    snapshot: Snapshot,
    parameters: dict[str, nn.Parameter],
    optimiser: Optimizer,
    ema: Ema | None,
    identity: dict[str, Any],
) -> Resumed:
    """Put a run back where it stood.

    Args:
        snapshot: to read.
        parameters: filled in place.
        optimiser: its state is replaced; its groups stay as configured.
        ema: filled in place.
        identity: of the run that wants to go on.

    Returns:
        The progress and memory that were saved.

    Raises:
        ConfigError: the snapshot is of another run; every key that differs is named.
        CheckpointError: the snapshot is damaged.
    """
    check_identity(snapshot, identity)
    state = _read_state(snapshot)
    tensors = {name: _read_tensors(snapshot.folder / name, expected) for name, expected in state["files"].items()}
    trained = tensors["trainable.safetensors"]
    if trained.keys() != parameters.keys():
        odd = sorted(trained.keys() ^ parameters.keys())[0]
        raise CheckpointError(f"{snapshot.folder} does not fit this model: {odd} is on one side only")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])
    if ema is not None:
        ema.load_state_dict(tensors["ema.safetensors"])
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors["optimiser.safetensors"].items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})
    return Resumed(dict(state["progress"]), tensors.get("memory.safetensors", {}))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON objects to `{"path.to.key": value}`."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def check_identity(snapshot: Snapshot, identity: dict[str, Any]) -> None:
    """A snapshot may only be resumed by the run that wrote it.

    Raises:
        ConfigError: naming every key that differs.
        CheckpointError: the snapshot is damaged.
    """
    old, new = flatten(_read_state(snapshot)["identity"]), flatten(identity)
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        told = ", ".join(f"{key} (was {old.get(key)!r}, is {new.get(key)!r})" for key in different)
        raise ConfigError(
            f"{snapshot.folder} belongs to another run and cannot be resumed: {told}; "
            "restore these values or choose another out"
        )


def _read_state(snapshot: Snapshot) -> dict[str, Any]:
    path = snapshot.folder / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        version = state["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}); remove that folder to resume from the one before"
        ) from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}")
    return dict(state)


def _read_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    fix = "remove that folder to resume from the one before"
    try:
        if sha256_file(path) != expected:
            raise CheckpointError(f"{path} was changed since it was written: its sha256 is another; {fix}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {fix}") from error
