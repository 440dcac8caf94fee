"""What tells one model from another, whatever its folder says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from dina_lrm.checkpoint.format import ModelConfig
from dina_lrm.model import RewardNetwork

__all__ = ["fingerprint"]

_NO_MATTER = {"calibration", "likelihood", "notes", "provenance", "files"}  # to a utility


def fingerprint(network: RewardNetwork, config: ModelConfig) -> str:
    """Hash of all that a candidate's utility depends on.

    The weights themselves are read, since a published folder names no hashes of its files; and nothing but them, so that a
    base that has gone out of reach since changes nothing.

    Args:
        network: its head, and what it does not share with its base; the base is told by its name and a few numbers of each
            of its tensors.
        config: how the network is asked.

    Returns:
        SHA-256, hexadecimal.
    """
    backbone = network.backbone
    own = backbone.network_state() if config.backbone.weights == "own" else {}
    base = {name: value for name, value in backbone.network.named_parameters() if ".lora_" not in name}
    told = {
        "config": config.model_dump(mode="json", exclude=_NO_MATTER),
        "weights": [_digest(part) for part in (network.head.state_dict(), backbone.adapter_state(), own)],
        "base": [
            backbone.base,
            backbone.revision,
            _digest({name: value.flatten()[:8] for name, value in base.items()}),
        ],
        "dtype": str(backbone.dtype),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
