"""What an adapter's file says of itself: `Policy.save_pretrained` writes rank, scale and targets into it, as diffusers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dina_lrm.backbones import AdapterConfig
from dina_lrm.errors import CheckpointError
from dina_lrm.generation.policy import WEIGHTS_FILE

__all__ = ["read_adapter_config"]

METADATA = "lora_adapter_metadata"
# What makes of a LoRA something else than `alpha / r * B A` at every target.
OTHERWISE = (
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "use_rslora",
    "lora_bias",
    "modules_to_save",
    "layers_to_transform",
)


def read_adapter_config(folder: str | Path) -> AdapterConfig:
    """Rank, scale and targets of an adapter that `Policy.save_pretrained` wrote, for the policy that is to take it up.

    Args:
        folder: of it.

    Raises:
        CheckpointError: no such file, or one that does not say what it holds in these terms.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is no adapter's folder: {WEIGHTS_FILE} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy it again") from error
    values = {name.rpartition(".")[2]: value for name, value in said.items()}
    strange = [name for name in OTHERWISE if values.get(name)]
    if strange or not {"r", "lora_alpha", "target_modules"} <= values.keys():
        why = f"uses {', '.join(strange)}" if strange else "does not say its rank, scale and targets"
        raise CheckpointError(
            f"the adapter in {path} {why}: Policy.save_pretrained did not write it; fuse it into the pipeline "
            "(load_lora_weights, fuse_lora) and save that"
        )
    targets = values["target_modules"]
    return AdapterConfig(
        rank=values["r"],
        alpha=values["lora_alpha"],
        target_modules=tuple(targets) if isinstance(targets, list) else (targets,),
        exclude_modules=tuple(values.get("exclude_modules") or ()),
    )
