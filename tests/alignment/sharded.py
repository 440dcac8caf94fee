"""Run under torchrun: two processes that hold the base together must do what two that each hold it whole do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dina_lrm.alignment import AlignConfig, Aligner
from dina_lrm.alignment.aligner import run_identity
from dina_lrm.alignment.run import AlignRun
from dina_lrm.runtime.accelerator import create_accelerator
from tests.alignment.test_aligner import measuring
from tests.alignment.tiny import ALGORITHMS, FACTORY, configured, mean_colour


def fails_on_the_second(pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
    """A scorer that is out of order on one of the processes only."""
    if os.environ["RANK"] == "1":
        raise RuntimeError("out of order")
    return mean_colour(pixels, prompts)


def base_of(block: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name, p in block.named_parameters() if "lora_" not in name]


def lived(config: AlignConfig, given: dict[str, Any], updates: int = 2) -> dict[str, Any]:
    """What a run says of itself after its updates and a measurement."""
    run = AlignRun(config, create_accelerator(device="cpu"), given)
    blocks = run.cast.policy.backbone.blocks
    every = [*blocks, *(block for reader in run.cast.readers for block in reader.backbone.blocks)]
    drawn: list[int] = []
    agreed = run._actors.agreed
    run._actors = replace(run._actors, agreed=lambda place: agreed(drawn.append(place) or place))
    peak = [0]

    def count(*_: Any) -> None:
        whole = sum(not isinstance(base_of(block)[0], DTensor) for block in every)
        peak.append(max(peak.pop(), whole))

    for block in every:
        block.register_forward_pre_hook(count)
    rows = [run.update(number) for number in range(updates)]
    measured = run.evaluate(updates).measurement
    backbones = [run.cast.policy.backbone, *(reader.backbone for reader in run.cast.readers)]
    base = [p for backbone in backbones for block in backbone.blocks for p in base_of(block)]
    held = [p.to_local() if isinstance(p, DTensor) else p for p in base]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "judged": [row["judged"] for row in rows],
        "weights": [float(p.detach().double().norm()) for p in run._parameters.values()],
        "rewards": [float(values.nansum()) for values in measured.rewards.values()],
        "distance": measured.distance.tolist(),
        "held": sum(storages.values()),
        "base": sum(p.nbytes for block in blocks for p in base_of(block)),
        "blocks": len(every),
        "gathered": peak[0],
        "left": sum(not isinstance(p, DTensor) for block in every for p in base_of(block)),
        "drawn": drawn,
    }


def begun_and_gone_on(configure: Callable[..., AlignConfig], out: Path, parted: bool) -> None:
    """Two updates, the second in another life; `parted` that life deals the base out."""
    config = configure(out, base_shards=1)
    run = AlignRun(config, create_accelerator(device="cpu"))
    run.update(0)
    run.save(1, run_identity(config, 2))
    Aligner(configure(out, base_shards=2 if parted else 1), quiet=True).run(resume="auto")


def main(world: str, other_world: str, out: str) -> None:
    torch.set_num_threads(1)

    def configure(
        place: str | Path, where: Path, algorithm: Any = None, rewards: Any = None, **changes: Any
    ) -> AlignConfig:
        latent = {"kind": "latent", "name": "latent", "model": str(Path(place, "reward"))}
        looking = measuring(num_prompts=3, batch_size=2)
        few = {"prompts_per_update": 1, "evaluation": looking, "monitor": {"action": "warn"}}
        chosen = tuple(latent if reward is None else reward for reward in rewards or (None,))
        return configured(Path(place), where, algorithm, **{**few, "rewards": chosen, **changes})

    cases: dict[str, Any] = {name: {"algorithm": algorithm} for name, algorithm in ALGORITHMS.items()}
    # Each process draws a step of its own to learn at, and how often the policy is asked hangs on it.
    cases["late"] = {"algorithm": {"kind": "refl", "late": 1.0}}
    # Blocks of two kinds, in half precision beside adapters in single, computed again for the gradient.
    cases["family"] = {"algorithm": ALGORITHMS["draft"], "dtype": "bfloat16", "gradient_checkpointing": True}
    cases["again"] = {"algorithm": ALGORITHMS["draft"], "gradient_checkpointing": True}
    # A scorer that fails on one process keeps nobody waiting, its gradient climbed alone or beside another's.
    cases["mixed"], cases["alone"] = {"rewards": (FACTORY, None)}, {"rewards": (FACTORY,)}
    told = {}
    for name, changes in cases.items():
        place = other_world if name == "family" else world
        given = {"reward": fails_on_the_second}
        told[name] = [
            lived(configure(place, Path(out, f"{name}-{shards}"), **changes, base_shards=shards), given)
            for shards in (1, 2)
        ]
    for name in ("whole", "parted"):
        begun_and_gone_on(
            lambda where, **changes: configure(world, where, **changes), Path(out, name), name == "parted"
        )
    Path(out, f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
