"""The authors' checkpoint layout: a config, a peft adapter, and a pickled head read as weights only.

    ROOT/config.json                                     the training configuration
    ROOT/checkpoint/backbone_lora/adapter_config.json    scale = lora_alpha / r is read here
    ROOT/checkpoint/backbone_lora/adapter_model.safetensors
    ROOT/checkpoint/rm_head.pt

ROOT may also hold `checkpoints/step_*`, or the folder with `rm_head.pt` may be given itself.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.backbones import AdapterConfig, BackboneConfig, load_backbone
from dina_lrm.backbones.base import load_strict
from dina_lrm.checkpoint.folder import LoadedModel, read_tensors
from dina_lrm.checkpoint.format import BaseReference, BradleyTerryConfig, ModelConfig, ScoringConfig, ThurstoneConfig
from dina_lrm.errors import CheckpointError
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.model import build_network

HEAD_FILE = "rm_head.pt"

# Their name on the left, ours on the right; applied in order to the start or middle of a key.
RENAMES = (
    (r"^query_tokens$", "queries"),
    (r"^layer_adapters_visual\.", "image_taps."),
    (r"^layer_adapters_text\.", "text_taps."),
    (r"\.proj_in\.", ".project_in."),
    (r"\.cond_mlp\.", ".film."),
    (r"^((?:image|text)_taps\.\d+)\.proj\.", r"\1.narrow."),
    (r"^agg_visual\.", "merge_image."),
    (r"^agg_text\.", "merge_text."),
    (r"^attn1\.", "attend_both."),
    (r"^attn2\.", "attend_image."),
    (r"\.norm_q\.", ".norm."),
    (r"\.norm_v\.", ".readers.image.norm."),
    (r"\.norm_t\.", ".readers.text.norm."),
    (r"\.to_([kv])_vis\.", r".readers.image.to_\1."),
    (r"\.to_([kv])_text\.", r".readers.text.to_\1."),
    (r"\.gate_vis\.", ".readers.image.gate."),
    (r"\.gate_text\.", ".readers.text.gate."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"^norm_ff\.", "norm_feed_forward."),
    (r"^ff\.", "feed_forward."),
    (r"^head\.", "to_utility."),
    (r"^eta3$", "output.centre"),
    (r"^eta4$", "output.width"),
)

LAWS = {
    "thurstone": ThurstoneConfig(),
    "thurstone-constant": ThurstoneConfig(scale=0.0, min_variance=0.5),
    "bt": BradleyTerryConfig(),
    "bt-margin": BradleyTerryConfig(margin=1.0),
}

ASSUMED_LOGISTIC = "the checkpoint saves no eta3 and eta4: their initial values 0 and 0.15 are used"


def find_published(path: Path) -> tuple[Path, Path] | None:
    """Config and checkpoint folder of a published model, or None if `path` holds none.

    Raises:
        CheckpointError: a head without a configuration near it.
    """
    numbered = [(int(found[1]), p) for p in path.glob("checkpoints/step_*") if (found := re.search(r"_(\d+)$", p.name))]
    steps = [step for _, step in sorted(numbered, reverse=True)]
    for folder in (path, path / "checkpoint", *steps):
        if (folder / HEAD_FILE).is_file():
            for above in (folder, folder.parent, folder.parent.parent):
                if (above / "config.json").is_file():
                    return above / "config.json", folder
            raise CheckpointError(f"{folder} has {HEAD_FILE} but no config.json there or up to two levels above")
    return None


def load_published(
    config_path: Path,
    checkpoint: Path,
    base: Any = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> LoadedModel:
    """Read a published model, strictly: every tensor finds its place, nothing is unpickled but tensors.

    Raises:
        CheckpointError: files or tensors are missing, extra, of the wrong shape, or a pickle holds code.
    """
    config = read_published_config(config_path, checkpoint)
    head_state = read_head(checkpoint / HEAD_FILE)
    bounded = isinstance(config.head, QueryHeadConfig) and config.head.bounded
    if bounded and not {"output.centre", "output.width"} & head_state.keys():
        head_state |= {"output.centre": torch.tensor(0.0), "output.width": torch.tensor(0.15)}
        config = config.model_copy(update={"notes": (*config.notes, ASSUMED_LOGISTIC)})
    backbone = load_backbone(
        config.backbone, config.base.name if base is None else base, device=device, dtype=dtype, revision=revision
    )
    network = build_network(backbone, config.head)
    load_strict(dict(network.head.state_dict(keep_vars=True)), head_state, "head")
    if config.backbone.adapter is not None:
        backbone.load_adapter_state(read_adapter(checkpoint / "backbone_lora" / "adapter_model.safetensors"))
    return LoadedModel(network.to(device).eval().requires_grad_(False), config)


def read_published_config(config_path: Path, checkpoint: Path) -> ModelConfig:
    """Translate the release's training configuration.

    Raises:
        CheckpointError: not JSON, or a needed key is missing or not understood.
    """
    try:
        raw = json.loads(config_path.read_text())
        model, training = raw["model"], raw.get("training", {})
        law = LAWS[model["model_type"]]
        head = model.get("reward_head", {})
        width = int(head.get("width", -1))
        return ModelConfig(
            backbone=BackboneConfig(
                image_taps=tuple(model["visual_head_idx"]),
                text_taps=tuple(model["text_head_idx"]),
                max_sequence_length=int(model.get("max_sequence_length", 128)),
                adapter=read_adapter_config(checkpoint) if _has_adapter(model) else None,
            ),
            base=BaseReference(name=str(model["backbone_model_id"])),
            head=QueryHeadConfig(
                width=None if width < 0 else width,
                num_queries=int(head.get("num_queries", 4)),
                num_attention_heads=int(head.get("num_attn_heads", 8)),
                project_in=bool(head.get("use_proj_in", False)),
                dropout=float(head.get("dropout", 0.0)),
                bounded=bool(model.get("use_logistic", False)),
            ),
            likelihood=law,
            scoring=ScoringConfig(snap_to_schedule=True, add_noise=bool(training.get("add_noise", True))),
            provenance={"layout": "published"},
        )
    except KeyError as error:
        raise CheckpointError(
            f"{config_path} lacks or does not know {error}; is it a DiNa-LRM training config?"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config_path} is no DiNa-LRM training config: {error}") from error


def read_adapter_config(checkpoint: Path) -> AdapterConfig:
    """Rank, alpha and targets from peft's own file: the training config may say otherwise and is not what was used."""
    path = checkpoint / "backbone_lora" / "adapter_config.json"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} is incomplete: backbone_lora/adapter_config.json is missing")
    raw = json.loads(path.read_text())
    return AdapterConfig(rank=raw["r"], alpha=raw["lora_alpha"], target_modules=tuple(sorted(raw["target_modules"])))


def read_adapter(path: Path) -> dict[str, Tensor]:
    """LoRA tensors by plain names, whatever the dialect: with or without peft's prefix and an adapter name."""
    return {
        re.sub(r"\.(lora_[AB])\.(?:[^.]+\.)?weight$", r".\1.weight", name.removeprefix("base_model.model.")): value
        for name, value in read_tensors(path).items()
    }


def read_head(path: Path) -> dict[str, Tensor]:
    """Head tensors by our names, never executing anything that the file holds.

    Raises:
        CheckpointError: missing, truncated, or a pickle with more than tensors in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as tensors only: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} must hold a dictionary of tensors")
    return {rename(name.removeprefix("module.")): value for name, value in state.items()}


def rename(name: str) -> str:
    """A head key of the release in our words."""
    for pattern, ours in RENAMES:
        name = re.sub(pattern, ours, name)
    return name


def _has_adapter(model: dict[str, Any]) -> bool:
    return bool(model.get("use_lora", True)) and not model.get("freeze_backbone", False)
