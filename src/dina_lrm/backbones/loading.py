"""Reading a pretrained network's kept tensors, and no others, from safetensors files on disk or the hub.

The network is laid out without storage, cut, and only then filled: what was cut away is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dina_lrm.backbones.encoders import reasons, require_tokenizers
from dina_lrm.backbones.sharing import put
from dina_lrm.errors import BaseMismatchError, InputError
from dina_lrm.runtime.hub import fetch, read_json

WEIGHTS = "diffusion_pytorch_model"
VARIANTS = ("", ".fp16", ".bf16")
PAGES = 1 << 25  # bytes of a file that may stay mapped while it is read


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, of which layers make their weights, gives no storage; tables that are computed stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def read_network_config(base: str, part: str, network_class: type, revision: str | None) -> dict[str, Any]:
    """`PART/config.json` of a pipeline folder or hub id.

    Raises:
        InputError: there is none, or it cannot be reached.
        BaseMismatchError: of another class.
    """
    config = read_json(base, f"{part}/config.json", revision)
    if config is None:
        raise InputError(f"base {base!r} has no {part}/config.json; name a diffusers pipeline folder or hub id as base")
    found = config.get("_class_name")
    if found not in (None, network_class.__name__):
        raise BaseMismatchError(f"{part} of base {base!r} is a {found}; this backbone reads a {network_class.__name__}")
    if "quantization_config" in config:
        raise InputError(
            f"{part} of base {base!r} is stored quantised; its codes mean nothing without their library: give the base in "
            "bfloat16, float16 or float32"
        )
    return config


def load_network(
    network_class: Any,
    config: dict[str, Any],
    cut: Callable[[Any], None],
    base: str,
    part: str,
    dtype: torch.dtype,
    revision: str | None,
) -> Any:
    """A pretrained network, cut and filled.

    Args:
        network_class: of diffusers.
        config: of the whole network, as `read_network_config` gives it.
        cut: drops from the network, in place, what is not to be kept.
        base: pipeline folder or hub id.
        part: subfolder of the weights.
        dtype: of the weights; those that the library keeps in float32 stay so.
        revision: of the hub repository.

    Raises:
        InputError: weights are missing, unreadable, or of another shape.
    """
    network = lay_out(network_class, config)
    cut(network)
    wanted: dict[str, Tensor] = network.state_dict()
    places = {name: path for name, path in _locate(base, part, revision, set(wanted)).items() if name in wanted}
    missing = sorted(wanted.keys() - places.keys())
    if missing:
        raise InputError(
            f"{part} of base {base!r} lacks {len(missing)} weights, the first is {missing[0]!r}; is it complete?"
        )
    for name, value in _read(places):
        if value.shape != wanted[name].shape:
            raise InputError(
                f"{places[name]}: weight {name!r} must be {list(wanted[name].shape)} by the config, got {list(value.shape)}"
            )
        if not value.dtype.is_floating_point or value.itemsize < 2:
            raise InputError(
                f"{places[name]}: weight {name!r} is {value.dtype}, which is a quantised form; give the base in bfloat16, "
                "float16 or float32"
            )
        put(network, name, value.to(_dtype_of(network, name, dtype)))
    return network.requires_grad_(False).eval()


def lay_out(network_class: Any, config: dict[str, Any]) -> Any:
    """A whole network without storage; only tables that no file holds are real."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = network_class.from_config(config)
    if not _has_unsaved_tables(network):
        return network
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return network_class.from_config(config)


def _has_unsaved_tables(network: nn.Module) -> bool:
    """Rotary tables that no file holds: they must be computed, and only then is anything else computed too."""
    for module in network.modules():
        if module._non_persistent_buffers_set or any(isinstance(value, Tensor) for value in vars(module).values()):
            return True
    return False


def cast(network: Any, dtype: torch.dtype) -> Any:
    """The network with its weights in another dtype, as loading in that dtype gives it; those that stay are not copied."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            put(network, name, value.to(_dtype_of(network, name, dtype)))
    return network


def _dtype_of(network: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """A few parts are float32 for the library whatever the rest is."""
    whole = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    return torch.float32 if whole & set(name.split(".")) else dtype


def _locate(base: str, part: str, revision: str | None, wanted: set[str]) -> dict[str, Path]:
    """In which file each wanted tensor is; of a hub repository only the shards that hold one are downloaded."""
    for variant in VARIANTS:
        index = read_json(base, f"{part}/{WEIGHTS}.safetensors.index{variant}.json", revision)
        if index is not None:
            held = {name: shard for name, shard in index["weight_map"].items() if name in wanted}
            shards = {shard: _shard(base, part, shard, revision) for shard in sorted(set(held.values()))}
            return {name: shards[shard] for name, shard in held.items()}
        path = fetch(base, f"{part}/{WEIGHTS}{variant}.safetensors", revision)
        if path is not None:
            return dict.fromkeys(wanted & set(_names(path)), path)
    if fetch(base, f"{part}/{WEIGHTS}.bin", revision) is not None:
        raise InputError(
            f"{part} of base {base!r} is stored as a pickle ({WEIGHTS}.bin), which may run code and is not read; "
            "save the pipeline again with safe_serialization=True"
        )
    raise InputError(f"{part} of base {base!r} has no {WEIGHTS}.safetensors; is the download complete?")


def variant_of(base: str, part: str, revision: str | None, stem: str = WEIGHTS) -> str | None:
    """`fp16` or `bf16` where a part is stored in that form only; None where its plain form is there."""
    for variant in VARIANTS:
        index = f"{part}/{stem}.safetensors.index{variant}.json"
        if fetch(base, f"{part}/{stem}{variant}.safetensors", revision) or fetch(base, index, revision):
            return variant[1:] or None
    return None


def _shard(base: str, part: str, name: str, revision: str | None) -> Path:
    path = fetch(base, f"{part}/{name}", revision)
    if path is None:
        raise InputError(f"{part} of base {base!r} lacks {name}, which its index names; is the download complete?")
    return path


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); copy or download it again") from error


def _read(places: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor, copied out of its mapped file, which is closed now and then: pages that were read do not pile up."""
    for path in sorted(set(places.values())):
        left = [name for name, place in places.items() if place == path]
        try:
            while left:
                with safe_open(path, framework="pt") as file:
                    held = 0
                    while left and held < PAGES:
                        value: Tensor = file.get_tensor(left[0]).clone()
                        held += value.nbytes
                        yield left.pop(0), value
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as safetensors ({error}); copy or download it again") from error


def load_scheduler(base: str, revision: str | None) -> Any:
    """The scheduler of a pipeline folder or hub id.

    Raises:
        InputError: there is none.
    """
    import diffusers

    config = read_json(base, "scheduler/scheduler_config.json", revision)
    if config is None:
        raise InputError(f"base {base!r} has no scheduler/scheduler_config.json; is it complete?")
    return getattr(diffusers, config["_class_name"]).from_config(config)


def load_pipeline(
    base: str, dtype: torch.dtype, device: torch.device | str = "cpu", revision: str | None = None
) -> Any:
    """A whole diffusers pipeline, silent, on a device.

    Args:
        base: folder or hub id.
        dtype: of its weights.
        device: where to put it.
        revision: of the hub repository.

    Raises:
        InputError: nothing that diffusers can load is there.
    """
    from diffusers import DiffusionPipeline

    if read_json(base, "model_index.json", revision) is None:
        raise InputError(
            f"base {base!r} has no model_index.json: it is no diffusers pipeline; name the folder or hub id of one"
        )
    require_tokenizers(base, revision)
    with reasons(f"pipeline {base!r}"):
        pipeline = DiffusionPipeline.from_pretrained(base, dtype=dtype, revision=revision, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
