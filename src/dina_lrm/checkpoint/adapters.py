"""LoRA adapters on disk: every dialect of their keys, and peft's `adapter_config.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from dina_lrm.backbones import AdapterConfig
from dina_lrm.checkpoint.tensor_files import check_finite, read_tensors
from dina_lrm.errors import CheckpointError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

_KEY = re.compile(r"(?P<prefix>base_model\.model\.)?(?P<layer>.+)\.(?P<matrix>lora_[AB])\.(?:(?P<name>[^.]+)\.)?weight")

# What changes the arithmetic of `alpha / r * B A`, the values that do not, and what it would be.
_PLAIN: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("peft_type", (None, "LORA"), "another method than LoRA"),
    ("use_dora", (None, False), "DoRA, with a magnitude a layer"),
    ("use_rslora", (None, False), "scaled by the root of the rank"),
    ("use_qalora", (None, False), "grouped for a quantised base"),
    ("use_bdlora", (None, False), "of block-diagonal matrices"),
    ("bias", (None, "none"), "biases that are learned too"),
    ("lora_bias", (None, False), "biases that are learned too"),
    ("rank_pattern", (None, {}), "ranks that differ between layers"),
    ("alpha_pattern", (None, {}), "scales that differ between layers"),
    ("modules_to_save", (None, []), "whole layers beside the matrices"),
    ("target_parameters", (None, []), "parameters that are no layers"),
    ("trainable_token_indices", (None, [], {}), "token embeddings"),
    ("layer_replication", (None, []), "layers that are repeated"),
    ("fan_in_fan_out", (None, False), "transposed weights"),
)

Rule = Callable[[str], bool]


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it was read and checked, before any base is there.

    Attributes:
        config: rank, alpha and targets in our words.
        tensors: by plain names, `transformer_blocks.0.attn.to_q.lora_A.weight`, in the dtype on disk.
        raw: all of `adapter_config.json`.
        prefixed: keys begin with peft's `base_model.model.`.
        name: of the adapter, as the keys have it.
        adapts: whether a layer is one that the adapter must cover; None where `config` says it all.
        notes: what was read otherwise than it is written.
    """

    config: AdapterConfig
    tensors: dict[str, Tensor]
    raw: dict[str, Any]
    prefixed: bool
    name: str | None
    adapts: Rule | None = None
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers."""
        return layers_of(self.tensors)


def read_adapter(folder: Path) -> StoredAdapter:
    """An adapter's folder: both files, each pair of matrices whole and of the stated rank.

    Raises:
        CheckpointError: naming the file and the first fault.
    """
    _refuse_other_formats(folder)
    raw = read_adapter_config(folder / CONFIG_FILE)
    stored = read_tensors(folder / WEIGHTS_FILE)
    tensors, prefixed, name = plain_names(folder / WEIGHTS_FILE, stored)
    check_pairs(folder / WEIGHTS_FILE, tensors, int(raw["r"]))
    check_finite(str(folder / WEIGHTS_FILE), tensors)
    config, adapts, notes = _targets(folder / CONFIG_FILE, raw, layers_of(tensors))
    return StoredAdapter(config, tensors, raw, prefixed, name, adapts, notes)


def read_adapter_config(path: Path) -> dict[str, Any]:
    """Peft's own file, refused if it is more than plain LoRA: scale and targets are read here and nowhere else.

    Raises:
        CheckpointError: missing, not JSON, without rank or alpha, or of a variety that is not plain LoRA.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent.parent} is incomplete: {path.parent.name}/{path.name} is missing")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(raw).__name__}")
    for key, harmless, meaning in _PLAIN:
        if raw.get(key) not in harmless:
            raise CheckpointError(
                f"{path} sets {key} to {raw[key]!r} ({meaning}); only plain LoRA is read, so merge it or convert it first"
            )
    for key, kind in (("r", int), ("lora_alpha", int | float)):
        value = raw.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{path} must state {key}, a number above 0; it has {value!r}")
    return raw


def plain_names(path: Path, stored: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool, str | None]:
    """LoRA tensors by plain names, whatever the dialect: with or without peft's prefix and an adapter's name.

    Raises:
        CheckpointError: no LoRA matrices, other tensors beside them, or those of several adapters.
    """
    if not stored:
        raise CheckpointError(f"{path} holds no tensors; is it the adapter's file?")
    tensors: dict[str, Tensor] = {}
    dialects: set[tuple[bool, str | None]] = set()
    for key, value in stored.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise CheckpointError(
                f"{path}: tensor {key!r} is no LoRA matrix (lora_A or lora_B); only plain LoRA is read"
            )
        dialects.add((found["prefix"] is not None, found["name"]))
        tensors[f"{found['layer']}.{found['matrix']}.weight"] = value
    names = sorted({str(name) for _, name in dialects})
    if len(names) > 1 or len(tensors) < len(stored):
        raise CheckpointError(f"{path} holds several adapters ({', '.join(names)}); keep one")
    prefixed, name = next(iter(dialects))
    return tensors, prefixed, name


def layers_of(tensors: Iterable[str]) -> list[str]:
    """Names of the layers that LoRA tensors adapt, in order: layer 10 after layer 9."""
    layers = {name.partition(".lora_")[0] for name in tensors}
    return sorted(
        layers,
        key=lambda layer: [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in layer.split(".")],
    )


def check_pairs(path: Path, tensors: dict[str, Tensor], rank: int) -> None:
    """Each layer has both matrices, and both have the rank.

    Raises:
        CheckpointError: naming the first that has not.
    """
    for layer in layers_of(tensors):
        for matrix, axis in (("lora_A", 0), ("lora_B", 1)):
            name = f"{layer}.{matrix}.weight"
            if name not in tensors:
                raise CheckpointError(f"{path} lacks {name!r}, the other half of its layer; is the file complete?")
            shape = list(tensors[name].shape)
            if len(shape) < 2 or shape[axis] != rank:
                raise CheckpointError(
                    f"{path}: {name!r} must have rank {rank} ({CONFIG_FILE}: r), its shape is {shape}"
                )


def narrowed(adapter: StoredAdapter) -> StoredAdapter:
    """An adapter of SD3 that is on `attn` and on no `attn2`, though its targets name both.

    The release's MindSpore branch trains them so: what is whole in that sense is taken for whole.
    """
    targets, layers = adapter.config.target_modules, set(adapter.layers)
    blocks = {found[1] for layer in layers if (found := re.fullmatch(r"(transformer_blocks\.\d+)\.attn\..+", layer))}
    if targets is None or layers != {f"{block}.attn.{target}" for block in blocks for target in targets}:
        return adapter
    config = adapter.config.model_copy(update={"target_modules": tuple(f"attn.{target}" for target in targets)})
    note = (
        "the adapter is on attn alone, as the MindSpore branch trains it: attn2, where the base has it, stays as it is"
    )
    return replace(adapter, config=config, notes=(*adapter.notes, note))


def peft_config(adapter: AdapterConfig, layers: list[str], base: str) -> dict[str, Any]:
    """`adapter_config.json` of an ordinary peft adapter, which loads on the base's whole network.

    The layers are named in full: suffixes would also name those of blocks that are not kept here.
    """
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": "gaussian",
        "target_modules": layers,
        "exclude_modules": list(adapter.exclude_modules) or None,
        "inference_mode": True,
    }


def rule_of(path: Path, raw: dict[str, Any]) -> Rule:
    """Which layers an `adapter_config.json` names, by peft's rules.

    Raises:
        CheckpointError: targets of another form.
    """
    targets, excluded = raw.get("target_modules"), raw.get("exclude_modules")
    wanted, unwanted = _names(path, "target_modules", targets), _names(path, "exclude_modules", excluded)
    numbers, pattern = raw.get("layers_to_transform"), raw.get("layers_pattern")

    def numbered(layer: str) -> bool:
        if numbers in (None, []):
            return True
        patterns = [pattern] if isinstance(pattern, str) else pattern or [r"[^.]*"]
        found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", layer))), None)
        return found is not None and int(found[1]) in ([numbers] if isinstance(numbers, int) else numbers)

    return lambda layer: wanted(layer) and numbered(layer) and not (excluded and unwanted(layer))


def _names(path: Path, key: str, value: Any) -> Rule:
    if value is None or value == "all-linear":
        return lambda layer: True
    if isinstance(value, str):
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise CheckpointError(f"{path}: {key} {value!r} is no regular expression: {error}") from error
        return lambda layer: pattern.fullmatch(layer) is not None
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return lambda layer: any(layer == one or layer.endswith(f".{one}") for one in value)
    raise CheckpointError(f"{path}: {key} must be a list of names or a regular expression, got {value!r}")


def _targets(path: Path, raw: dict[str, Any], layers: list[str]) -> tuple[AdapterConfig, Rule | None, tuple[str, ...]]:
    """Targets as suffixes where peft's file has such, else in full: a regular expression is no list of suffixes."""
    rule = rule_of(path, raw)
    odd = [layer for layer in layers if not rule(layer)]
    if odd:
        raise CheckpointError(
            f"{path} does not name layer {odd[0]!r}, which the adapter's file has; they do not belong together"
        )
    targets, excluded = raw.get("target_modules"), raw.get("exclude_modules")
    suffixes = (
        isinstance(targets, list) and not isinstance(excluded, str) and raw.get("layers_to_transform") in (None, [])
    )
    try:
        config = AdapterConfig(
            rank=raw["r"],
            alpha=raw["lora_alpha"],
            target_modules=tuple(sorted(targets)) if suffixes and targets else tuple(layers),
            exclude_modules=tuple(sorted(excluded or ())) if suffixes else (),
        )
    except ValidationError as error:
        raise CheckpointError(f"{path}: {error.errors()[0]['msg']}") from error
    if suffixes:
        return config, None, ()
    told = f"{targets!r}" if isinstance(targets, str) else "a rule"
    note = f"adapter_config.json names its layers by {told}: they are written out, {len(layers)} of them"
    return config, None if targets is None or targets == "all-linear" else rule, (note,)


def _refuse_other_formats(folder: Path) -> None:
    if (folder / WEIGHTS_FILE).is_file():
        return
    if (folder / "adapter_model.ckpt").is_file():
        raise CheckpointError(
            f"{folder / 'adapter_model.ckpt'} is in MindSpore's own format, which is not read; "
            f"save it there as {WEIGHTS_FILE} (mindspore.save_checkpoint with format='safetensors')"
        )
    if (folder / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{folder / 'adapter_model.bin'} is a pickle, which may run code and is not read; "
            f"save the adapter again as {WEIGHTS_FILE} (safe_serialization=True)"
        )
