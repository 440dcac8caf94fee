"""Our model folder: `config.json`, `head.safetensors`, `adapter/` or `network.safetensors`, every byte accounted for.

    FOLDER/
      config.json                            ModelConfig; names size and hash of the files below
      head.safetensors                       float32, or as published
      adapter/adapter_config.json            an ordinary peft adapter; absent with a frozen backbone
      adapter/adapter_model.safetensors
      network.safetensors                    the kept network, of a model that brings its own weights

The base's own weights are not in it: they come from the pipeline that `config.base` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dina_lrm.checkpoint.adapters import PEFT_PREFIX, check_pairs, layers_of, peft_config, read_adapter_config
from dina_lrm.checkpoint.fit import check_head
from dina_lrm.checkpoint.format import SCHEMA_VERSION, CalibrationConfig, FileEntry, ModelConfig
from dina_lrm.checkpoint.stored import LoadedModel, StoredModel, load_stored
from dina_lrm.checkpoint.tensor_files import check_finite, map_tensors, read_tensors, write_tensors
from dina_lrm.errors import CheckpointError
from dina_lrm.model import RewardNetwork
from dina_lrm.runtime.files import atomic_folder, atomic_write, sha256_file

CONFIG_FILE = "config.json"
HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter/adapter_config.json"
NETWORK_FILE = "network.safetensors"
CARD_FILES = ("calibration.json", "reliability.png")  # what `dina-lrm calibrate` lays beside a model, for people
ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors", "README.md")  # the last is peft's


def save_model(folder: Path | str, network: RewardNetwork, config: ModelConfig) -> None:
    """Write a model folder; it appears whole or not at all.

    Args:
        folder: to write; a model that lies there is replaced.
        network: its head and adapter are saved, or all of it if the model brings its own weights.
        config: `base.signature` and `files` are filled in here.

    Raises:
        CheckpointError: weights that are not finite, or a folder that holds other things than a model.
    """
    backbone = network.backbone
    tensors = {HEAD_FILE: dict(network.head.state_dict())}
    if config.backbone.adapter is not None:
        tensors[ADAPTER_FILE] = backbone.adapter_state()
    if config.backbone.weights == "own":
        tensors[NETWORK_FILE] = backbone.network_state()
    signature = backbone.signature()
    if config.backbone.weights == "own":
        signature.pop("probe", None)  # it was of the base's weights, which training has changed
    base = config.base.model_copy(update={"signature": signature})
    write_folder(
        folder,
        config.model_copy(update={"base": base}),
        {name: {key: _float32(value) for key, value in values.items()} for name, values in tensors.items()},
    )


def write_folder(folder: Path | str, config: ModelConfig, tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a model folder from tensors in the dtype that they are to have on disk; it appears whole or not at all.

    Args:
        folder: to write; a model that lies there is replaced.
        config: `files` is filled in here.
        tensors: by file; those of the adapter by plain names.

    Raises:
        CheckpointError: values that are not finite, or a folder that holds other things than a model.
    """
    refuse_foreign(Path(folder))
    with atomic_folder(Path(folder)) as staged:
        for name, values in tensors.items():
            check_finite(name, values)
            prefix = PEFT_PREFIX if name == ADAPTER_FILE else ""
            write_tensors(staged / name, {prefix + key: value for key, value in values.items()})
        if config.backbone.adapter is not None:
            written = peft_config(config.backbone.adapter, layers_of(tensors[ADAPTER_FILE]), config.base.name)
            write_json(staged / ADAPTER_CONFIG_FILE, written)
        whole = config.model_copy(update={"files": file_entries(staged)})
        write_json(staged / CONFIG_FILE, whole.model_dump(mode="json"))


def refuse_foreign(folder: Path) -> None:
    """Only what a writer of models made may be replaced by one.

    Raises:
        CheckpointError: naming the first file that is somebody's own.
    """
    if not folder.is_dir():
        return
    adapter = {f"{place}/{name}" for place in ("adapter", "checkpoint/backbone_lora") for name in ADAPTER_NAMES}
    known = {
        CONFIG_FILE,
        HEAD_FILE,
        NETWORK_FILE,
        *CARD_FILES,
        "checkpoint/rm_head.pt",
        "checkpoint/full_model.pt",
        *adapter,
    }
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in known:
            raise CheckpointError(
                f"{folder} holds {name}, which is no part of a model, and would be lost; name a folder of its own"
            )


def save_calibration(folder: Path | str, calibration: CalibrationConfig) -> None:
    """Put a calibration into a model folder: `config.json` is replaced whole, no other file is touched.

    Raises:
        CheckpointError: no whole model folder of ours.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_sizes(folder, config)
    changed = config.model_copy(update={"calibration": calibration})
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(json.dumps(changed.model_dump(mode="json"), indent=2).encode())


def load_model(
    folder: Path | str,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    merge_adapter: bool | None = None,
) -> LoadedModel:
    """Read a model folder, strictly.

    Args:
        folder: written by `save_model`.
        base: pipeline folder, hub id or loaded pipeline; None takes the one the config names.
        device: where to put the model.
        dtype: of the base weights.
        merge_adapter: True adds the adapter to the base weights, False keeps it apart; None adds it unless `base` is a
            loaded pipeline, whose weights are shared.

    Raises:
        CheckpointError: the folder is not whole.
        BaseMismatchError: the base is not the one that the model was trained on.
    """
    return load_stored(read_model(folder), base, device, dtype, merge_adapter)


def read_model(folder: Path | str) -> StoredModel:
    """Read a model folder and check all that can be checked without its base.

    Raises:
        CheckpointError: the first fault.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_sizes(folder, config)
    head = read_tensors(folder / HEAD_FILE)
    adapter = network = None
    if config.backbone.adapter is not None:
        stored = read_tensors(folder / ADAPTER_FILE)
        adapter = {name.removeprefix(PEFT_PREFIX): value for name, value in stored.items()}
        check_pairs(folder / ADAPTER_FILE, adapter, config.backbone.adapter.rank)
    if config.backbone.weights == "own":
        network = map_tensors(folder / NETWORK_FILE)
    for name, values in ((HEAD_FILE, head), (ADAPTER_FILE, adapter), (NETWORK_FILE, network)):
        check_finite(str(folder / name), values or {})
    return StoredModel(folder, config, head, check_head(config, head), adapter, network=network)


def verify_model(folder: Path | str) -> None:
    """Check a model folder whole, without its base: schema, sizes, hashes, names, shapes, finite weights.

    Raises:
        CheckpointError: the first fault.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_sizes(folder, config)
    check_hashes(folder, config.files)
    read_model(folder)
    adapter = config.backbone.adapter
    if adapter is not None:
        written = read_adapter_config(folder / ADAPTER_CONFIG_FILE)
        for key, value in (("r", adapter.rank), ("lora_alpha", adapter.alpha)):
            if written[key] != value:
                raise CheckpointError(
                    f"{folder / ADAPTER_CONFIG_FILE} says {key} {written[key]}, {CONFIG_FILE} says {value}; save it again"
                )


def read_config(folder: Path) -> ModelConfig:
    """Read and check `config.json`.

    Raises:
        CheckpointError: missing, not JSON, of another schema, or with an unknown key.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    return parse_model_config(raw, str(path))


def parse_model_config(raw: Any, source: str) -> ModelConfig:
    """A `ModelConfig` from plain values.

    Raises:
        CheckpointError: of another schema, or with an unknown key or a wrong value.
    """
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{source} has schema_version {version!r}, this version reads {SCHEMA_VERSION}")
    try:
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{source}: {place}: {first['msg']}, got {first['input']!r:.80}") from error


def check_sizes(folder: Path, config: ModelConfig) -> None:
    """The config names just the files that a model has, and each is there and has its size.

    Raises:
        CheckpointError: the first that is unnamed, missing or cut.
    """
    adapter = set() if config.backbone.adapter is None else {ADAPTER_FILE, ADAPTER_CONFIG_FILE}
    needed = {HEAD_FILE} | adapter | ({NETWORK_FILE} if config.backbone.weights == "own" else set())
    if config.files.keys() != needed:
        odd = sorted(config.files.keys() ^ needed)[0]
        raise CheckpointError(
            f"{folder / CONFIG_FILE} must name the files {sorted(needed)}; {odd!r} is on one side only"
        )
    check_entries(folder, config.files)


def check_entries(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Each file is there and has its size.

    Raises:
        CheckpointError: the first that is missing or cut.
    """
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        if path.stat().st_size != entry.bytes:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, config.json says {entry.bytes}; copy it again"
            )


def check_hashes(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Each file is, byte for byte, what was written.

    Raises:
        CheckpointError: the first that is not.
    """
    for name, entry in files.items():
        found = sha256_file(folder / name)
        if found != entry.sha256:
            raise CheckpointError(
                f"{folder / name} was changed: its sha256 is {found}, config.json says {entry.sha256}"
            )


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Size and hash of every file below a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {n: FileEntry(sha256=sha256_file(folder / n), bytes=(folder / n).stat().st_size) for n in names}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON for people too."""
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def _float32(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach()
