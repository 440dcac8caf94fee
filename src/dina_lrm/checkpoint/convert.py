"""From the authors' layout to ours and back, file to file: no base is loaded, and every weight keeps its bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dina_lrm.checkpoint.adapters import CONFIG_FILE as ADAPTER_CONFIG_FILE
from dina_lrm.checkpoint.adapters import PEFT_PREFIX, WEIGHTS_FILE, layers_of, peft_config, rule_of
from dina_lrm.checkpoint.describe import OURS, PUBLISHED, read_any, resolve, store
from dina_lrm.checkpoint.folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    NETWORK_FILE,
    file_entries,
    read_model,
    refuse_foreign,
    write_folder,
    write_json,
)
from dina_lrm.checkpoint.format import BaseReference, CalibrationConfig, ModelConfig
from dina_lrm.checkpoint.head_names import their_name
from dina_lrm.checkpoint.published import (
    ADAPTER_FOLDER,
    ASSUMED_LOGISTIC,
    FULL_FILE,
    LAWS,
    LOGISTIC_START,
    SECTION,
    find_published,
    read_published,
    translate,
    with_release_latents,
)
from dina_lrm.checkpoint.published import HEAD_FILE as PUBLISHED_HEAD_FILE
from dina_lrm.checkpoint.stored import StoredModel
from dina_lrm.checkpoint.tensor_files import dtypes_of, write_tensors
from dina_lrm.errors import CheckpointError
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.runtime.files import atomic_folder

Layout = Literal["dina_lrm", "published"]
THEIR_KINDS = ("sd3", "flux", "zimage", "qwen_image")
CHECKPOINT = "checkpoint"
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        source: what was read.
        out: the folder written.
        layout: of it.
        tensors: count of tensors, head and adapter or network together.
        bytes: of all files.
        notes: what to know of the model.
    """

    source: str
    out: str
    layout: Layout
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def convert_model(source: Path | str, out: Path | str, to: Layout = OURS, base: str | None = None) -> Conversion:
    """Write a model in the other layout. The folder appears whole or not at all.

    Args:
        source: folder or hub id, read and checked whole.
        out: the folder to write; replaced if it is a model folder.
        to: "dina_lrm" or "published", the authors' layout.
        base: folder or hub id to name as the base, for a published model that names none that can be told.

    Raises:
        CheckpointError: the source is not whole, is in that layout already or does not fit it, or `out` is in the way.
    """
    folder, out = resolve(source), Path(out)
    refuse_place(folder, out)
    published = find_published(folder)
    if (published is None) == (to == OURS):
        raise CheckpointError(f"{source} is in the layout {to!r} already; convert to the other one (--to)")
    if published is None:
        if base is not None:
            raise CheckpointError(f"{source} names its base itself; base {base!r} is for published models only")
        stored = read_model(folder)
        write_published(stored, out)
    else:
        stored = store(read_published(published), base)
        if base is not None:
            local = Path(base).exists()  # named in full: the model will be loaded from elsewhere
            name, _, revision = (str(Path(base).absolute()), "", "") if local else base.partition("@")
            named = BaseReference(name=name, revision=revision or None)
            stored = replace(stored, config=stored.config.model_copy(update={"base": named}))
        stored = with_release_latents(stored)
        write_ours(stored, out)
    parts = (stored.head, stored.adapter or {}, stored.network or {})
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Conversion(str(source), str(out), to, sum(map(len, parts)), size, stored.config.notes)


def calibrated_copy(source: Path | str, out: Path | str, calibration: CalibrationConfig) -> None:
    """A model of either layout as a folder of ours with this calibration; it appears whole or not at all.

    Args:
        source: folder or hub id, read and checked whole.
        out: the folder to write; replaced if it is a model folder.
        calibration: that the copy carries.

    Raises:
        CheckpointError: the source is not whole, or `out` is in the way.
    """
    folder, out = resolve(source), Path(out)
    refuse_place(folder, out)
    stored = read_any(folder)
    if find_published(folder) is not None:
        stored = with_release_latents(stored)
    base = stored.config.base
    beside = folder / base.name
    if not Path(base.name).is_absolute() and beside.is_dir():  # the copy lies elsewhere
        base = base.model_copy(update={"name": str(beside.resolve())})
    config = stored.config.model_copy(update={"base": base, "calibration": calibration})
    write_ours(replace(stored, config=config), out)


def write_ours(stored: StoredModel, out: Path) -> None:
    """A stored model as a folder of ours, each tensor in the dtype that it has."""
    parts = {HEAD_FILE: stored.head, ADAPTER_FILE: stored.adapter, NETWORK_FILE: stored.network}
    write_folder(out, stored.config, {name: tensors for name, tensors in parts.items() if tensors is not None})


def write_published(stored: StoredModel, out: Path) -> None:
    """A stored model in the authors' layout.

    Raises:
        CheckpointError: their schema has no words for it.
    """
    config = stored.config
    law = check_publishable(stored)
    head = OrderedDict((their_name(name), value) for name, value in _saved_by_them(stored).items())
    adapter = config.backbone.adapter
    with atomic_folder(out) as staged:
        folder = staged / CHECKPOINT
        folder.mkdir()
        if stored.network is not None:
            whole = OrderedDict((f"backbone.{name}", value) for name, value in stored.network.items())
            torch.save(whole | {f"reward_head.{name}": value for name, value in head.items()}, folder / FULL_FILE)
        else:
            torch.save(head, folder / PUBLISHED_HEAD_FILE)
        if stored.adapter is not None and adapter is not None:
            named = {PEFT_PREFIX + name: value for name, value in stored.adapter.items()}
            write_tensors(folder / ADAPTER_FOLDER / WEIGHTS_FILE, named)
            write_json(folder / ADAPTER_FOLDER / ADAPTER_CONFIG_FILE, _adapter_config(stored))
        section = config.model_copy(update={"files": file_entries(folder)})
        training = _training_config(stored, law)
        write_json(staged / CONFIG_FILE, {**training, SECTION: section.model_dump(mode="json")})


def check_publishable(stored: StoredModel) -> str:
    """The authors' schema has words for this model.

    Returns:
        Their name of its law of choice.

    Raises:
        CheckpointError: naming the first thing that it cannot say.
    """
    config = stored.config
    law = next((name for name, law in LAWS.items() if law == config.likelihood), None)
    faults = (
        (
            config.head.kind != "query",
            f"its head is {config.head.kind!r}, and the published layout has the query head only",
        ),
        (
            config.backbone.kind not in THEIR_KINDS,
            f"its backbone is {config.backbone.kind!r}, and the authors' release has {', '.join(THEIR_KINDS)}",
        ),
        (
            stored.head_reads is None,
            "its head joins taps of several resolutions, and the published layout has one",
        ),
        (
            config.base.random_seed is not None,
            "its base has random weights (a control), which the published layout cannot say",
        ),
        (
            law is None,
            f"its likelihood is {config.likelihood}, and the published layout has {', '.join(LAWS)} with fixed constants",
        ),
    )
    for fault, reason in faults:
        if fault:
            raise CheckpointError(f"{stored.folder} cannot be published: {reason}")
    assert law is not None
    return law


def _saved_by_them(stored: StoredModel) -> dict[str, Tensor]:
    """The head without what the release does not save, where its values are just the assumed ones."""
    if ASSUMED_LOGISTIC not in stored.config.notes:
        return stored.head
    assumed = all(torch.equal(stored.head[name], torch.tensor(value)) for name, value in LOGISTIC_START.items())
    return {name: value for name, value in stored.head.items() if not (assumed and name in LOGISTIC_START)}


def _training_config(stored: StoredModel, law: str) -> dict[str, Any]:
    """The configuration that the model was published with, if it still says what the model is; else a new one."""
    config, original = stored.config, stored.config.provenance.get("config")
    if isinstance(original, dict) and _says(original, config):
        return original
    head, backbone = config.head, config.backbone
    assert isinstance(head, QueryHeadConfig)
    adapter = backbone.adapter
    lora = (
        {"r": adapter.rank, "lora_alpha": _whole(adapter.alpha), "init_lora_weights": "gaussian"} if adapter else None
    )
    dtype = dtypes_of(stored.head.values())[0]
    return {
        "model": {
            "model_type": law,
            "backbone_model_id": config.base.name,
            "num_transformer_layers": backbone.depth,
            "freeze_backbone": adapter is None and backbone.weights == "base",
            "use_lora": adapter is not None,
            "use_text_features": True,
            **({"lora_config": lora} if lora else {}),
            "use_logistic": head.bounded,
            "visual_head_idx": list(backbone.image_taps),
            "text_head_idx": list(backbone.text_taps),
            "max_sequence_length": backbone.max_sequence_length,
            "use_t_embed": True,
            "reward_head": {
                "use_proj_in": head.project_in,
                "width": -1 if head.width is None else head.width,
                "out_dim": 1,
                "num_queries": head.num_queries,
                "num_attn_heads": head.num_attention_heads,
                "dropout": head.dropout,
            },
        },
        "training": {"mixed_precision": _PRECISIONS.get(dtype, "fp32"), "add_noise": config.scoring.add_noise},
    }


def _says(training: Mapping[str, Any], config: ModelConfig) -> bool:
    backbone = config.backbone
    try:
        said = translate(dict(training), backbone.kind, backbone.adapter, backbone.weights == "own")
    except (KeyError, ValueError, TypeError, AttributeError):
        return False
    same = said.backbone == backbone and said.head == config.head and said.likelihood == config.likelihood
    return same and said.base.name == config.base.name and said.scoring.add_noise == config.scoring.add_noise


def _adapter_config(stored: StoredModel) -> dict[str, Any]:
    """The file of peft as it was published, if it still says what the adapter is; else a new one."""
    adapter = stored.config.backbone.adapter
    assert adapter is not None and stored.adapter is not None
    layers, original = layers_of(stored.adapter), stored.config.provenance.get("adapter_config")
    if isinstance(original, dict) and (original.get("r"), original.get("lora_alpha")) == (adapter.rank, adapter.alpha):
        names = rule_of(stored.folder / CONFIG_FILE, original)
        if all(map(names, layers)):
            return original
    return peft_config(adapter, layers, stored.config.base.name)


def refuse_place(source: Path | None, out: Path) -> None:
    """Nothing is overwritten but a model folder, and never what is being read.

    Args:
        source: folder that is read; None where that is none of ours to name.
        out: folder to write.

    Raises:
        CheckpointError: `out` is in the way.
    """
    here, there = None if source is None else source.resolve(), out.resolve()
    if here is not None and (here == there or here in there.parents or there in here.parents):
        raise CheckpointError(f"{out} and {source} lie in one another; write to a folder of its own")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; name a folder to write")
    refuse_foreign(out)


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


__all__ = [
    "PUBLISHED",
    "Conversion",
    "Layout",
    "check_publishable",
    "convert_model",
    "refuse_place",
    "write_ours",
    "write_published",
]
