"""A model path of any kind: ours or the published layout, a folder or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dina_lrm.checkpoint.families import check_layers, kind_of_base, kind_of_checkpoint, kinds_of_layers, untold
from dina_lrm.checkpoint.folder import (
    ADAPTER_FILE,
    HEAD_FILE,
    NETWORK_FILE,
    check_hashes,
    file_entries,
    load_model,
    read_config,
    read_model,
    verify_model,
)
from dina_lrm.checkpoint.format import BaseReference
from dina_lrm.checkpoint.published import (
    ADAPTER_FOLDER,
    FULL_FILE,
    PARTS,
    PublishedFiles,
    find_published,
    load_published,
    read_published,
    to_stored,
)
from dina_lrm.checkpoint.published import HEAD_FILE as PUBLISHED_HEAD_FILE
from dina_lrm.checkpoint.stored import LoadedModel, StoredModel, named_base
from dina_lrm.checkpoint.tensor_files import dtypes_of
from dina_lrm.errors import CheckpointError

OURS: Literal["dina_lrm"] = "dina_lrm"
PUBLISHED: Literal["published"] = "published"


def resolve(path: Path | str, revision: str | None = None) -> Path:
    """A local folder as it is; a hub id as the snapshot it downloads to.

    Raises:
        CheckpointError: neither a folder nor something the hub has, with the reason.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise CheckpointError(f"model {str(path)!r} is a folder, which has no revision {revision!r}; leave it out")
        return Path(path)
    if Path(path).is_file():
        raise CheckpointError(f"model {str(path)!r} is a file; give the folder that it lies in")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    from dina_lrm.runtime.hub import hub_reason

    try:
        return Path(snapshot_download(str(path), revision=revision))
    except (HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(f"model {hub_reason(str(path), revision, error)}") from error


def load_any(
    path: Path | str,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    merge_adapter: bool | None = None,
) -> LoadedModel:
    """Load a model folder of ours or of the published layout.

    Args:
        path: folder or hub id.
        base: diffusers pipeline folder, hub id or loaded pipeline; None takes the one that the model names.
        device: where to put it.
        dtype: of the base weights.
        revision: of the model's hub repository.
        merge_adapter: as in `load_model`.

    Raises:
        CheckpointError: the folder is not whole, or not a model.
        BaseMismatchError: the base is not the one that the model was trained on.
    """
    folder = resolve(path, revision)
    published = find_published(folder)
    if published is not None:
        return load_published(published, base=base, device=device, dtype=dtype, merge_adapter=merge_adapter)
    return load_model(folder, base=base, device=device, dtype=dtype, merge_adapter=merge_adapter)


def verify(path: Path | str) -> bool:
    """Check a model folder whole, without its base.

    Returns:
        Whether its contents were held against hashes: the authors' own layout has none.

    Raises:
        CheckpointError: the first fault.
    """
    folder = resolve(path)
    published = find_published(folder)
    if published is None:
        verify_model(folder)
        return True
    files = read_published(published)
    if files.section is not None:
        check_hashes(published.checkpoint, files.section.files)
    store(files, must_know=False)
    return files.section is not None


def is_published(path: Path | str) -> bool:
    """Whether a model, folder or hub id, has the authors' layout.

    Raises:
        CheckpointError: neither a folder nor something the hub has.
    """
    return find_published(resolve(path)) is not None


def read_any(path: Path | str, base: str | None = None) -> StoredModel:
    """All that a model folder holds, checked, without its base.

    Args:
        path: folder or hub id.
        base: names the base and so the kind of network, where a published model does not.

    Raises:
        CheckpointError: the folder is not whole, or not a model.
    """
    folder = resolve(path)
    published = find_published(folder)
    return read_model(folder) if published is None else store(read_published(published), base)


def store(files: PublishedFiles, base: str | None = None, must_know: bool = True) -> StoredModel:
    """Put a published model into our words; its kind of network is told by whatever is at hand.

    Args:
        files: as read.
        base: folder or hub id, asked first.
        must_know: refuse a model that does not tell; else the likeliest is assumed, with a note.

    Raises:
        CheckpointError: the files do not fit the configuration, or nothing tells the kind.
    """
    if files.section is not None:
        return to_stored(files, files.section.backbone.kind)
    beside, _ = named_base(files.place.config.parent, BaseReference(name=files.base), base)
    if base is not None or (Path(beside) / "model_index.json").is_file():
        kind = kind_of_base(beside)
        check_layers(kind, files.layers, f"base {beside!r}")
        return to_stored(files, kind)
    told = kind_of_checkpoint(files.base, files.layers)
    if told is not None:
        return to_stored(files, told)
    if must_know:
        raise untold(files.base, files.layers)
    shaped = kinds_of_layers(files.layers)
    kind = shaped[0] if shaped and "sd3" not in shaped else "sd3"
    stored = to_stored(files, kind)
    note = f"nothing in the checkpoint tells its kind of network for sure: {kind} is assumed"
    return replace(stored, config=stored.config.model_copy(update={"notes": (*stored.config.notes, note)}))


def describe(path: Path | str) -> dict[str, Any]:
    """What a model folder is, as JSON values: configuration, sizes, layout, dtypes and hashes on disk, notes."""
    folder = resolve(path)
    published = find_published(folder)
    if published is None:
        config = read_config(folder)
        stored = read_model(folder)
        names = {HEAD_FILE: stored.head, ADAPTER_FILE: stored.adapter, NETWORK_FILE: stored.network}
        told: dict[str, Any] = {"path": str(path), "layout": OURS}
        files = {name: entry.model_dump() for name, entry in config.files.items()}
    else:
        read = read_published(published)
        stored = store(read, must_know=False)
        told = {"path": str(path), "layout": PUBLISHED, "checkpoint": published.name, "left_out": published.others}
        if read.adapter is not None:
            told["adapter_keys"] = {
                "prefix": "base_model.model." if read.adapter.prefixed else None,
                "name": read.adapter.name,
            }
        head = FULL_FILE if stored.network is not None else PUBLISHED_HEAD_FILE
        names = {head: stored.head, f"{ADAPTER_FOLDER}/adapter_model.safetensors": stored.adapter}
        names |= {} if stored.network is None else {FULL_FILE: {**stored.head, **stored.network}}
        entries = file_entries(published.checkpoint)
        files = {name: entry.model_dump() for name, entry in entries.items() if name.split("/")[0] in PARTS}
    return {
        **told,
        "head_parameters": _count(stored.head),
        "tensors": {name: _summary(tensors) for name, tensors in names.items() if tensors is not None},
        **stored.config.model_dump(mode="json"),
        "files": files,
    }


def _summary(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"count": len(tensors), "parameters": _count(tensors), "dtypes": dtypes_of(tensors.values())}


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())
