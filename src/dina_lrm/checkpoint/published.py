"""The authors' checkpoint layout: a training configuration, a peft adapter, and pickles read as tensors only.

    ROOT/config.json                                     the training configuration
    ROOT/checkpoint/backbone_lora/adapter_config.json    scale = lora_alpha / r is read here
    ROOT/checkpoint/backbone_lora/adapter_model.safetensors
    ROOT/checkpoint/rm_head.pt
    ROOT/checkpoint/full_model.pt                        in place of both, of a model trained whole

ROOT may also hold `checkpoints/step_*` or `checkpoints/epoch_*`, or the folder with `rm_head.pt` may be given itself.
A head alone is what a frozen backbone leaves. What `convert` wrote has a section `dina_lrm` in its configuration, with
what the authors' schema cannot say.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.checkpoint.adapters import StoredAdapter, narrowed, read_adapter
from dina_lrm.checkpoint.families import RELEASE_LATENTS, check_layers, kind_of_base
from dina_lrm.checkpoint.fit import check_head
from dina_lrm.checkpoint.folder import check_entries, parse_model_config
from dina_lrm.checkpoint.format import BaseReference, BradleyTerryConfig, ModelConfig, ScoringConfig, ThurstoneConfig
from dina_lrm.checkpoint.head_names import our_name
from dina_lrm.checkpoint.stored import LoadedModel, StoredModel, load_stored, named_base, way_out
from dina_lrm.checkpoint.tensor_files import check_finite, read_pickled_tensors
from dina_lrm.errors import CheckpointError
from dina_lrm.heads import QueryHeadConfig

CONFIG_FILE = "config.json"
HEAD_FILE = "rm_head.pt"
ADAPTER_FOLDER = "backbone_lora"
FULL_FILE = "full_model.pt"
PARTS = (HEAD_FILE, ADAPTER_FOLDER, FULL_FILE)
MINDSPORE = ("rm_head.ckpt", "full_model.ckpt")
SECTION = "dina_lrm"

Mode = Literal["adapter", "full", "head"]
BY_MODE: dict[Mode, set[str]] = {"adapter": {HEAD_FILE, ADAPTER_FOLDER}, "full": {FULL_FILE}, "head": {HEAD_FILE}}

LAWS = {
    "thurstone": ThurstoneConfig(),
    "thurstone-constant": ThurstoneConfig(scale=0.0, min_variance=0.5),
    "bt": BradleyTerryConfig(),
    "bt-margin": BradleyTerryConfig(margin=1.0),
}

ASSUMED_LOGISTIC = "the checkpoint saves no eta3 and eta4: their initial values 0 and 0.15 are used"
LOGISTIC_START = {"output.centre": 0.0, "output.width": 0.15}
_CONTAINER = re.compile(r"(?:module\.)?(backbone|reward_head)\.(?:module\.)?(.+)")
_FROZEN = re.compile(r"(?:text_encoder(?:_\d)?|vae)\.")


@dataclass(frozen=True)
class PublishedFolder:
    """Where a published model lies.

    Attributes:
        config: the training configuration.
        checkpoint: the folder with the weights.
        others: checkpoints beside it that are not read, newest first.
    """

    config: Path
    checkpoint: Path
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the checkpoint, as seen from the configuration."""
        return self.checkpoint.relative_to(self.config.parent).as_posix()


@dataclass(frozen=True)
class PublishedFiles:
    """What a published model's files hold, checked but not yet put into our words.

    Attributes:
        place: where they lie.
        training: the training configuration, without our section.
        section: our section of it, if `convert` wrote it.
        head: by our names.
        adapter: of a model with LoRA.
        network: of a model trained whole, left on disk.
        notes: what was left aside.
    """

    place: PublishedFolder
    training: dict[str, Any]
    section: ModelConfig | None
    head: dict[str, Tensor]
    adapter: StoredAdapter | None = None
    network: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of the layers that the model adapts or brings; none of a head alone."""
        return self.adapter.layers if self.adapter else sorted(self.network or ())

    @property
    def base(self) -> str:
        """The base that the configuration names."""
        return str(self.training["model"]["backbone_model_id"])


def find_published(path: Path) -> PublishedFolder | None:
    """A published model at a path, or None if it holds none. The newest step wins; epochs count where there are no steps.

    Raises:
        CheckpointError: weights without a configuration near them, or a configuration without weights.
    """
    path = path.absolute()
    numbered = [*_numbered(path, "step"), *_numbered(path, "epoch")]
    places = [folder for folder in (path, path / "checkpoint", *numbered) if _has_weights(folder)]
    for folder in places[:1]:
        for above in (folder, folder.parent, folder.parent.parent):
            if (above / CONFIG_FILE).is_file():
                others = tuple(other.name for other in places[1:])
                return PublishedFolder(above / CONFIG_FILE, folder, others)
        raise CheckpointError(f"{folder} has weights but no {CONFIG_FILE} there or up to two levels above")
    if _looks_like_training(path / CONFIG_FILE):
        raise CheckpointError(
            f"{path} has a training configuration but no weights: {HEAD_FILE} or {FULL_FILE} is missing "
            "(looked in it, in checkpoint/ and in checkpoints/)"
        )
    return None


def _numbered(path: Path, word: str) -> list[Path]:
    found = [p for at in ("checkpoints", ".") for p in path.glob(f"{at}/{word}_*") if re.search(r"_\d+$", p.name)]
    return sorted(found, key=lambda p: int(p.name.rpartition("_")[2]), reverse=True)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*PARTS, *MINDSPORE))


def _looks_like_training(path: Path) -> bool:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and isinstance(raw.get("model"), dict) and "model_type" in raw["model"]


def load_published(
    place: PublishedFolder,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    merge_adapter: bool | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Read a published model, strictly: every tensor finds its place, nothing is unpickled but tensors.

    Args:
        place: of the model.
        base: pipeline folder, hub id or loaded pipeline; None takes the one that the configuration names.
        device: where to put the model.
        dtype: of the base weights.
        merge_adapter: as in `load_model`.
        revision: of the base's hub repository.

    Raises:
        CheckpointError: files or tensors are missing, extra, of the wrong shape, or a pickle holds code.
        BaseMismatchError: the base is not the one that the model was trained on.
    """
    files = read_published(place)
    reference = BaseReference(name=files.base) if files.section is None else files.section.base
    at, revision = named_base(place.config.parent, reference, base, revision)
    with way_out(base):
        kind = kind_of_base(at, revision)
    check_layers(kind, files.layers, f"base {at!r}" if isinstance(at, str) else "the base given")
    return load_stored(with_release_latents(to_stored(files, kind)), at, device, dtype, merge_adapter, revision)


def read_published(place: PublishedFolder) -> PublishedFiles:
    """Read a published model's files; each is checked by itself.

    Raises:
        CheckpointError: naming the file and the fault.
    """
    raw = read_training_config(place.config)
    section = raw.pop(SECTION, None)
    own = None if section is None else parse_model_config(section, f"{place.config}: {SECTION}")
    if own is not None:
        check_entries(place.checkpoint, own.files)
    mode = read_mode(raw, place)
    if mode == "full":
        network, head, notes = _read_full(place.checkpoint / FULL_FILE)
        return PublishedFiles(place, raw, own, head, network=network, notes=notes)
    head = read_head(place.checkpoint / HEAD_FILE)
    adapter = read_adapter(place.checkpoint / ADAPTER_FOLDER) if mode == "adapter" else None
    return PublishedFiles(place, raw, own, head, adapter)


def to_stored(files: PublishedFiles, kind: str) -> StoredModel:
    """Put a published model into our words.

    Raises:
        CheckpointError: the files do not fit the configuration.
    """
    adapter = narrowed(files.adapter) if files.adapter and kind == "sd3" else files.adapter
    config = _translated(files, kind, adapter)
    notes = [*files.notes, *(adapter.notes if adapter else ())]
    if files.section is not None:
        _check_agreement(files.place.config, files.section, config)
        config, notes = files.section.model_copy(update={"files": {}}), []
    head = dict(files.head)
    bounded = isinstance(config.head, QueryHeadConfig) and config.head.bounded
    if bounded and not LOGISTIC_START.keys() & head.keys():
        head |= {name: torch.tensor(value) for name, value in LOGISTIC_START.items()}
        notes.append(ASSUMED_LOGISTIC)
    told = (*config.notes, *(note for note in notes if note not in config.notes))
    config = config.model_copy(update={"notes": told})
    head_file = FULL_FILE if files.network is not None else HEAD_FILE
    reads = check_head(config, head, f"head ({head_file})")
    return StoredModel(
        files.place.config.parent,
        config,
        head,
        reads,
        adapter.tensors if adapter else None,
        adapter.adapts if adapter and files.section is None else None,
        files.network,
    )


def with_release_latents(stored: StoredModel) -> StoredModel:
    """A published model has no signature of its base, but all of the release were trained on one scale of latents."""
    base, latents = stored.config.base, RELEASE_LATENTS.get(stored.config.backbone.kind)
    if base.signature is not None or latents is None:
        return stored
    signed = base.model_copy(update={"signature": dict(latents)})
    return replace(stored, config=stored.config.model_copy(update={"base": signed}))


def _translated(files: PublishedFiles, kind: str, adapter: StoredAdapter | None) -> ModelConfig:
    try:
        config = translate(files.training, kind, adapter.config if adapter else None, files.network is not None)
    except KeyError as error:
        raise CheckpointError(
            f"{files.place.config} lacks or does not know {error}; is it a DiNa-LRM training config?"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{files.place.config} is no DiNa-LRM training config: {reason}") from error
    provenance = {
        "layout": "published",
        "checkpoint": files.place.name,
        "config": files.training,
        "adapter_config": adapter.raw if adapter else None,
    }
    return config.model_copy(update={"provenance": provenance})


def translate(training: dict[str, Any], kind: str, adapter: AdapterConfig | None, own_weights: bool) -> ModelConfig:
    """The release's training configuration in our words.

    Args:
        training: as it stands in the file.
        kind: of the backbone.
        adapter: as its own file states it.
        own_weights: the model brings the whole network.

    Raises:
        KeyError: a needed key is missing, or a law of choice is unknown.
        ValueError: a value does not fit.
    """
    model, head = training["model"], training["model"].get("reward_head") or {}
    width = int(head.get("width", -1))
    if int(head.get("out_dim", 1)) != 1:
        raise ValueError(f"reward_head.out_dim must be 1, got {head['out_dim']}")
    backbone = BackboneConfig(
        kind=kind,
        image_taps=tuple(model["visual_head_idx"]),
        text_taps=tuple(model["text_head_idx"]),
        max_sequence_length=int(model.get("max_sequence_length", 128)),
        adapter=adapter,
        weights="own" if own_weights else "base",
    )
    kept = model.get("num_transformer_layers")
    if kept is not None and int(kept) < backbone.depth:
        raise ValueError(f"taps reach block {backbone.depth}, but num_transformer_layers keeps {kept}")
    return ModelConfig(
        backbone=backbone,
        base=BaseReference(name=str(model["backbone_model_id"])),
        head=QueryHeadConfig(
            width=None if width < 0 else width,
            num_queries=int(head.get("num_queries", 4)),
            num_attention_heads=int(head.get("num_attn_heads", 8)),
            project_in=bool(head.get("use_proj_in", False)),
            dropout=float(head.get("dropout", 0.0)),
            bounded=bool(model.get("use_logistic", False)),
        ),
        likelihood=LAWS[model["model_type"]],
        scoring=ScoringConfig(
            snap_to_schedule=True, add_noise=bool((training.get("training") or {}).get("add_noise", True))
        ),
    )


def _check_agreement(path: Path, section: ModelConfig, theirs: ModelConfig) -> None:
    """Whoever edits one half of a converted configuration must not be misread by the other."""
    for name, ours, other in (
        ("base", section.base.name, theirs.base.name),
        ("taps", section.backbone.image_taps, theirs.backbone.image_taps),
        ("text taps", section.backbone.text_taps, theirs.backbone.text_taps),
        ("max_sequence_length", section.backbone.max_sequence_length, theirs.backbone.max_sequence_length),
        ("weights", section.backbone.weights, theirs.backbone.weights),
        ("rank and alpha", _scale(section), _scale(theirs)),
        ("head", section.head, theirs.head),
        ("likelihood", section.likelihood, theirs.likelihood),
    ):
        if ours != other:
            raise CheckpointError(
                f"{path} contradicts itself: {name} is {other} by the training configuration, {ours} by its section "
                f"{SECTION}; remove the section, or undo the change"
            )


def _scale(config: ModelConfig) -> tuple[float, float] | None:
    adapter = config.backbone.adapter
    return None if adapter is None else (adapter.rank, float(adapter.alpha))


def read_training_config(path: Path) -> dict[str, Any]:
    """The training configuration as it stands.

    Raises:
        CheckpointError: not JSON, or not a configuration of the release.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no DiNa-LRM training config: it is not JSON ({error})") from error
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} lacks 'model'; is it a DiNa-LRM training config?")
    if "backbone_model_id" not in model:
        raise CheckpointError(f"{path} lacks 'backbone_model_id'; is it a DiNa-LRM training config?")
    return dict(raw)


def read_mode(training: dict[str, Any], place: PublishedFolder) -> Mode:
    """What was trained, told alike by the configuration and by the files that are there.

    Raises:
        CheckpointError: they contradict each other, or are MindSpore's.
    """
    model, folder = training["model"], place.checkpoint
    frozen, lora = bool(model.get("freeze_backbone", False)), bool(model.get("use_lora", True))
    mode: Mode = "head" if frozen else "adapter" if lora else "full"
    says = "freeze_backbone" if frozen else "use_lora" if lora else "neither use_lora nor freeze_backbone"
    there = {name for name in PARTS if (folder / name).exists()}
    for name in MINDSPORE:
        if (folder / name).is_file() and not there & {HEAD_FILE, FULL_FILE}:
            raise CheckpointError(
                f"{folder / name} is in MindSpore's own format, which is not read; load it there "
                f"(mindspore.load_checkpoint) and save its values as a torch state dict, {name.removesuffix('.ckpt')}.pt"
            )
    if there != BY_MODE[mode]:
        needed, extra = sorted(BY_MODE[mode] - there), sorted(there - BY_MODE[mode])
        faults = [*(f"{name} is missing" for name in needed), *(f"{name} is there" for name in extra)]
        raise CheckpointError(
            f"{place.config} says {says}, which leaves {' and '.join(sorted(BY_MODE[mode]))}; "
            f"but in {folder} {' and '.join(faults)}"
        )
    return mode


def read_head(path: Path) -> dict[str, Tensor]:
    """Head tensors by our names, never executing anything that the file holds.

    Raises:
        CheckpointError: missing, truncated, a pickle with more than tensors in it, or an older head.
    """
    return _in_our_names(path, read_pickled_tensors(path))


def _in_our_names(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    old = [name for name in state if re.search(r"(^|\.)norm[123]\.", name)]
    if old:
        raise CheckpointError(
            f"{path} holds an older head (RewardHeadV3, by {old[0]!r}), which reads both streams in one softmax and has no "
            "gates; its weights have no place in the published head, so train that anew"
        )
    named = {our_name(name.removeprefix("module.")): value for name, value in state.items()}
    check_finite(str(path), named)
    return named


def _read_full(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Network and head of a model trained whole."""
    network: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    aside = 0
    for name, value in read_pickled_tensors(path, large=True).items():
        found = _CONTAINER.fullmatch(name)
        if found is None:
            raise CheckpointError(f"{path}: tensor {name!r} is neither of the backbone nor of the reward_head")
        if found[1] == "reward_head":
            head[found[2]] = value
        elif _FROZEN.match(found[2]):
            aside += 1
        else:
            network[found[2]] = value
    for part, tensors in (("backbone", network), ("reward_head", head)):
        if not tensors:
            raise CheckpointError(f"{path} has no tensors of the {part}; is it a whole model?")
    check_finite(str(path), network)
    notes = (f"{aside} tensors of frozen text encoders and VAE are left aside: the base has them",) if aside else ()
    return network, _in_our_names(path, head), notes
