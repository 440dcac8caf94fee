"""Our model folder: `config.json`, `head.safetensors`, `adapter/`, every byte accounted for.

    FOLDER/
      config.json                            ModelConfig; names size and hash of the files below
      head.safetensors                       float32
      adapter/adapter_config.json            an ordinary peft adapter; absent with a frozen backbone
      adapter/adapter_model.safetensors

The base's own weights are not in it: they come from the pipeline that `config.base` names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina_lrm.backbones import AdapterConfig, Backbone, load_backbone
from dina_lrm.backbones.base import load_strict
from dina_lrm.checkpoint.format import SCHEMA_VERSION, BaseReference, FileEntry, ModelConfig
from dina_lrm.errors import BaseMismatchError, CheckpointError
from dina_lrm.model import RewardNetwork, build_network
from dina_lrm.runtime.files import atomic_folder, sha256_file

HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter/adapter_config.json"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with what its folder says of it."""

    network: RewardNetwork
    config: ModelConfig


def save_model(folder: Path | str, network: RewardNetwork, config: ModelConfig) -> None:
    """Write a model folder; it appears whole or not at all.

    Args:
        folder: to write; replaced if it exists.
        network: its head and adapter are saved.
        config: `base.signature` and `files` are filled in here.

    Raises:
        CheckpointError: weights that are not finite.
    """
    tensors = {HEAD_FILE: {name: value.detach().float() for name, value in network.head.state_dict().items()}}
    if config.backbone.adapter is not None:
        adapter = network.backbone.adapter_state()
        tensors[ADAPTER_FILE] = {PEFT_PREFIX + name: value.float() for name, value in adapter.items()}
    with atomic_folder(Path(folder)) as staged:
        for name, values in tensors.items():
            _refuse_non_finite(name, values)
            (staged / name).parent.mkdir(exist_ok=True)
            save_file({key: value.cpu().contiguous() for key, value in values.items()}, staged / name)
        if config.backbone.adapter is not None:
            written = _peft_config(config.backbone.adapter, network.backbone, config.base.name)
            (staged / ADAPTER_CONFIG_FILE).write_text(json.dumps(written, indent=2))
        names = sorted(str(p.relative_to(staged)) for p in staged.rglob("*") if p.is_file())
        files = {n: FileEntry(sha256=sha256_file(staged / n), bytes=(staged / n).stat().st_size) for n in names}
        base = config.base.model_copy(update={"signature": network.backbone.signature()})
        whole = config.model_copy(update={"files": files, "base": base})
        (staged / "config.json").write_text(json.dumps(whole.model_dump(mode="json"), indent=2))


def load_model(
    folder: Path | str,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Read a model folder, strictly.

    Args:
        folder: written by `save_model`.
        base: pipeline folder, hub id or loaded pipeline; None takes the one the config names.
        device: where to put the model.
        dtype: of the base weights.

    Raises:
        CheckpointError: the folder is not whole.
        BaseMismatchError: the base is not the one that the model was trained on.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_sizes(folder, config)
    revision = config.base.revision if base is None else None  # a commit of the named base is none of another
    if base is None:
        base = _locate_base(folder, config.base.name)
    backbone = load_backbone(
        config.backbone,
        base,
        device=device,
        dtype=dtype,
        revision=revision,
        random_seed=config.base.random_seed,
    )
    check_base(config.base, backbone)
    network = build_network(backbone, config.head)
    load_strict(dict(network.head.state_dict(keep_vars=True)), read_tensors(folder / HEAD_FILE), "head")
    if config.backbone.adapter is not None:
        stored = read_tensors(folder / ADAPTER_FILE)
        backbone.load_adapter_state({name.removeprefix(PEFT_PREFIX): value for name, value in stored.items()})
    return LoadedModel(network.to(device).eval().requires_grad_(False), config)


def verify_model(folder: Path | str) -> None:
    """Check a model folder whole, without its base: schema, sizes, hashes, finite weights.

    Raises:
        CheckpointError: the first fault.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_sizes(folder, config)
    for name, entry in config.files.items():
        found = sha256_file(folder / name)
        if found != entry.sha256:
            raise CheckpointError(
                f"{folder / name} was changed: its sha256 is {found}, config.json says {entry.sha256}"
            )
        if name.endswith(".safetensors"):
            _refuse_non_finite(str(folder / name), read_tensors(folder / name))


def read_config(folder: Path) -> ModelConfig:
    """Read and check `config.json`.

    Raises:
        CheckpointError: missing, not JSON, of another schema, or with an unknown key.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: it has no config.json")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}")
    try:
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {place}: {first['msg']}, got {first['input']!r:.80}") from error


def check_sizes(folder: Path, config: ModelConfig) -> None:
    """The config names just the files that a model has, and each is there and has its size.

    Raises:
        CheckpointError: the first that is unnamed, missing or cut.
    """
    needed = {HEAD_FILE} if config.backbone.adapter is None else {HEAD_FILE, ADAPTER_FILE, ADAPTER_CONFIG_FILE}
    if config.files.keys() != needed:
        odd = sorted(config.files.keys() ^ needed)[0]
        raise CheckpointError(
            f"{folder / 'config.json'} must name the files {sorted(needed)}; {odd!r} is on one side only"
        )
    for name, entry in config.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        if path.stat().st_size != entry.bytes:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, config.json says {entry.bytes}; copy it again"
            )


def check_base(reference: BaseReference, backbone: Backbone) -> None:
    """The base in hand is the base the model was trained on: same class, sizes and probe weights.

    The probe tolerates half precision: a base may be stored or loaded as float16 or bfloat16.

    Raises:
        BaseMismatchError: the first difference.
    """
    if reference.signature is None:
        return
    found = backbone.signature()
    for key, expected in reference.signature.items():
        actual = found.get(key)
        if key == "probe":
            same = torch.allclose(torch.tensor(actual), torch.tensor(expected), rtol=1e-2, atol=1e-4)
        else:
            same = actual == expected
        if not same:
            raise BaseMismatchError(
                f"this model was trained on base {reference.name!r} with {key} {expected}, but the base given has {actual}; "
                "pass the right base="
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is incomplete: {path.name} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy it again") from error


def _refuse_non_finite(name: str, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name}: tensor {key!r} has values that are not finite")


def _peft_config(adapter: AdapterConfig, backbone: Backbone, base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": "gaussian",
        "target_modules": list(adapter.target_modules or backbone.default_adapter_targets),
        "layers_pattern": "transformer_blocks",
        "layers_to_transform": list(range(backbone.config.depth)),
        "inference_mode": True,
    }


def _locate_base(folder: Path, name: str) -> str:
    """A folder relative to the model's wins over one relative to here, so that both can move together."""
    beside = folder / name
    return str(beside) if not Path(name).is_absolute() and beside.is_dir() else name
