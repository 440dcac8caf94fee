"""Run under torchrun: two processes that hold the base together must do what two that each hold it whole do."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dina_lrm.alignment import AlignConfig
from dina_lrm.alignment.run import AlignRun
from dina_lrm.runtime.accelerator import create_accelerator
from tests.alignment.test_aligner import measuring
from tests.alignment.tiny import ALGORITHMS, FACTORY, configured, mean_colour

LATENT = {"kind": "latent", "name": "latent"}


def lived(
    config: AlignConfig, given: dict[str, Any] | None = None, updates: int = 2
) -> tuple[AlignRun, dict[str, Any]]:
    """A run after its updates and a measurement, and what it says of itself."""
    run = AlignRun(config, create_accelerator(device="cpu"), given)
    rows = [run.update(number) for number in range(updates)]
    found = run.evaluate(updates).measurement
    told = {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "judged": [row["judged"] for row in rows],
        "weights": [float(p.detach().double().norm()) for p in run._parameters.values()],
        "rewards": found.rewards["latent"].tolist(),
        "distance": found.distance.tolist(),
    }
    return run, told


def fails_on_the_second(pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
    if os.environ["RANK"] == "1":
        raise RuntimeError("out of order")
    return mean_colour(pixels, prompts)


def base_bytes(run: AlignRun) -> tuple[int, int]:
    """What this process holds of the base's blocks, and what they take whole; shared storage counts once."""
    backbones = [run.cast.policy.backbone, *(reader.backbone for reader in run.cast.readers)]
    base = [[p for block in b.blocks for name, p in block.named_parameters() if "lora_" not in name] for b in backbones]
    held = [p.to_local() if isinstance(p, DTensor) else p for parameters in base for p in parameters]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(storages.values()), sum(p.nbytes for p in base[0])


def main(world: str, other_world: str, out: str) -> None:
    torch.set_num_threads(1)
    latent = {**LATENT, "model": str(Path(world, "reward"))}
    told: dict[str, Any] = {}
    cases = {name: (world, algorithm, {}) for name, algorithm in ALGORITHMS.items()}
    # Blocks of two kinds, in half precision beside adapters in single, computed again for the gradient.
    cases["family"] = (other_world, ALGORITHMS["draft"], {"dtype": "bfloat16", "gradient_checkpointing": True})
    for name, (place, algorithm, changes) in cases.items():
        for shards in (1, 2):
            config = configured(
                Path(place),
                Path(out, f"{name}-{shards}"),
                algorithm,
                rewards=({**LATENT, "model": str(Path(place, "reward"))},),
                evaluation=measuring(num_prompts=3, batch_size=2),
                prompts_per_update=1,
                base_shards=shards,
                **changes,
            )
            run, told[f"{name}-{shards}"] = lived(config)
            told[f"{name}-{shards}"]["bytes"] = base_bytes(run)
    # A scorer that fails on one process only keeps nobody waiting, whether its gradient was to be climbed alone or with another's.
    for case, rewards in {"mixed": (FACTORY, latent), "alone": (FACTORY,)}.items():
        config = configured(Path(world), Path(out, case), {"kind": "refl"}, rewards=rewards, base_shards=2)
        run = AlignRun(config, create_accelerator(device="cpu"), {"reward": fails_on_the_second})
        told[case] = run.update(0)["judged"]
    # Each process draws a step of its own to learn at; how often the policy is asked hangs on it.
    config = configured(
        Path(world), Path(out, "late"), {"kind": "refl", "late": 1.0}, num_updates=4, rewards=(latent,), base_shards=2
    )
    run = AlignRun(config, create_accelerator(device="cpu"))
    agreed, heard = run._actors.agreed, []
    run._actors = replace(run._actors, agreed=lambda place: heard.append((place, agreed(place))) or heard[-1][1])
    for number in range(4):
        run.update(number)
    told["late"] = heard
    Path(out, f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
