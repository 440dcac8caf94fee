"""A model that was read and checked, before its base is there; and what becomes of it on a base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.backbones import Backbone, load_backbone
from dina_lrm.backbones.base import load_strict
from dina_lrm.checkpoint.adapters import Rule
from dina_lrm.checkpoint.fit import check_head_fits, fitting_adapter, fitting_network, sketch
from dina_lrm.checkpoint.format import BaseReference, ModelConfig
from dina_lrm.errors import BaseMismatchError, ConfigError, InputError
from dina_lrm.model import RewardNetwork, build_network
from dina_lrm.types import FeatureShape

VAE_KEYS = {"vae_scaling_factor", "vae_shift_factor", "vae_latents_mean", "vae_latents_std"}


@dataclass(frozen=True)
class StoredModel:
    """All that a checkpoint holds, whatever its layout, each tensor in its dtype on disk.

    Attributes:
        folder: where it was read.
        config: what it says of itself.
        head: by our names.
        head_reads: widths of the features that the head was made for; None where its tensors do not tell.
        adapter: LoRA matrices by plain names, if there are any.
        adapts: which layers the adapter must cover, where `config` does not say it all.
        network: weights of the network by the library's names, if the model brings its own; left on disk until used.
    """

    folder: Path
    config: ModelConfig
    head: dict[str, Tensor]
    head_reads: FeatureShape | None
    adapter: dict[str, Tensor] | None = None
    adapts: Rule | None = None
    network: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with what its folder says of it."""

    network: RewardNetwork
    config: ModelConfig


def load_stored(
    stored: StoredModel,
    base: Any,
    device: torch.device | str,
    dtype: torch.dtype,
    merge_adapter: bool | None,
    revision: str | None = None,
) -> LoadedModel:
    """Put a stored model on its base. What a base's configuration can tell is told before its weights are read.

    Args:
        stored: read and checked.
        base: pipeline folder, hub id or loaded pipeline; None takes the one that the model names.
        device: where to put the model.
        dtype: of the base weights; head and adapter are float32.
        merge_adapter: add the adapter to the weights; None does it unless `base` is a loaded pipeline, whose weights
            are shared.
        revision: of the base's hub repository; None takes the one that the model names, with the base that it names.

    Raises:
        BaseMismatchError: the base is not the one that the model was trained on.
        CheckpointError: tensors are missing for this base.
    """
    config = stored.config
    place, revision = named_base(stored.folder, config.base, base, revision)
    adapter, network = stored.adapter, stored.network
    with way_out(base):
        drawn = sketch(config.backbone, place, revision)
    if drawn is not None:
        check_head_fits(stored.head_reads, drawn)
        if adapter is not None:
            adapter = fitting_adapter(adapter, drawn, config.backbone, stored.adapts)
        if network is not None:
            network = fitting_network(network, drawn)
    backbone = load_backbone(
        config.backbone, place, device=device, dtype=dtype, revision=revision, random_seed=config.base.random_seed
    )
    check_base(config.base, backbone)
    model = build_network(backbone, config.head)
    load_strict(dict(model.head.state_dict(keep_vars=True)), stored.head, "head")
    if network is not None:
        backbone.load_network_state(network)
    if adapter is not None:
        backbone.load_adapter_state(adapter)
        if isinstance(place, str) if merge_adapter is None else merge_adapter:
            backbone.merge_adapter()
    return LoadedModel(model.to(device).eval().requires_grad_(False), config)


@contextmanager
def way_out(base: Any) -> Iterator[None]:
    """Where nobody gave a base, a named one that cannot be read is told with what to do: the user never typed that name."""
    try:
        yield
    except (BaseMismatchError, ConfigError):
        raise
    except InputError as error:
        if base is not None:
            raise
        raise InputError(
            f"the base that the model names could not be read: {error}; or give another place as base (--base)"
        ) from error


def named_base(
    folder: Path, reference: BaseReference, base: Any, revision: str | None = None
) -> tuple[Any, str | None]:
    """The base to load and its revision.

    A folder relative to the model's wins over one relative to here, so that both can move together. A commit of the base
    that the model names is none of another; a hub id may bring its own, `owner/name@revision`.
    """
    if base is not None:
        if not isinstance(base, str | Path) or Path(base).exists():
            return (str(base) if isinstance(base, Path) else base), revision
        name, _, own = str(base).partition("@")
        if own and Path(name).is_dir():
            raise InputError(f"base {name!r} is a folder, which has no revision {own!r}; leave it out")
        return name, own or revision
    beside = folder / reference.name
    movable = not Path(reference.name).is_absolute() and beside.is_dir()
    return str(beside) if movable else reference.name, revision or reference.revision


def check_base(reference: BaseReference, backbone: Backbone) -> None:
    """The base in hand is the base the model was trained on: same class, sizes, latents and probe weights.

    The probe tolerates half precision: a base may be stored or loaded as float16 or bfloat16. A pipeline without a VAE
    has no scale to compare: whoever gives it brings latents.

    Raises:
        BaseMismatchError: the first difference.
    """
    if reference.signature is None:
        return
    expected, found = dict(reference.signature), backbone.signature()
    if found.keys() & VAE_KEYS and expected.keys() & VAE_KEYS:
        expected |= {key: None for key in VAE_KEYS if key in found and key not in expected}
    else:
        expected = {key: value for key, value in expected.items() if key not in VAE_KEYS}
    for key, value in expected.items():
        actual = found.get(key)
        if key == "probe":
            same = torch.allclose(torch.tensor(actual), torch.tensor(value), rtol=1e-2, atol=1e-4)
        else:
            same = _plain(actual) == _plain(value)
        if not same:
            raise BaseMismatchError(
                f"this model was trained on base {reference.name!r} with {key} {value}, but the base given has {actual}; "
                "pass the right base="
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
