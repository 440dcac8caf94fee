"""A model path of any kind: ours or the published layout, a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dina_lrm.checkpoint.folder import HEAD_FILE, LoadedModel, load_model, read_config, read_tensors, verify_model
from dina_lrm.checkpoint.format import ModelConfig
from dina_lrm.checkpoint.published import (
    ASSUMED_LOGISTIC,
    find_published,
    load_published,
    read_adapter,
    read_head,
    read_published_config,
)
from dina_lrm.checkpoint.published import HEAD_FILE as PUBLISHED_HEAD_FILE
from dina_lrm.errors import CheckpointError


def resolve(path: Path | str, revision: str | None = None) -> Path:
    """A local folder as it is; a hub id as the snapshot it downloads to.

    Raises:
        CheckpointError: neither a folder nor something the hub has.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(path), revision=revision))
    except (HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model {str(path)!r} is no folder here, and the hub gave none ({reason}); check the path"
        ) from error


def load_any(
    path: Path | str,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> LoadedModel:
    """Load a model folder of ours or of the published layout."""
    folder = resolve(path, revision)
    published = find_published(folder)
    if published is not None:
        return load_published(*published, base=base, device=device, dtype=dtype)
    return load_model(folder, base=base, device=device, dtype=dtype)


def verify(path: Path | str) -> None:
    """Check a model folder whole, without its base.

    Raises:
        CheckpointError: the first fault.
    """
    folder = resolve(path)
    published = find_published(folder)
    if published is None:
        verify_model(folder)
        return
    config = read_published_config(*published)
    tensors = read_head(published[1] / PUBLISHED_HEAD_FILE)
    if config.backbone.adapter is not None:
        tensors |= read_adapter(published[1] / "backbone_lora" / "adapter_model.safetensors")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{published[1]}: tensor {name!r} has values that are not finite")


def describe(path: Path | str) -> dict[str, Any]:
    """What a model folder is, as JSON values: configuration, sizes, layout, notes."""
    folder = resolve(path)
    published = find_published(folder)
    if published is None:
        config, head = read_config(folder), read_tensors(folder / HEAD_FILE)
    else:
        config, head = read_published_config(*published), read_head(published[1] / PUBLISHED_HEAD_FILE)
        config = _with_assumptions(config, "output.centre" in head)
    return {
        "path": str(path),
        "layout": "dina_lrm" if published is None else "published",
        "head_parameters": sum(value.numel() for value in head.values()),
        **config.model_dump(mode="json"),
    }


def _with_assumptions(config: ModelConfig, has_logistic: bool) -> ModelConfig:
    if getattr(config.head, "bounded", False) and not has_logistic:
        return config.model_copy(update={"notes": (*config.notes, ASSUMED_LOGISTIC)})
    return config
