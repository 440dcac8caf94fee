"""What two processes that align a generator hold, its base whole on each or dealt out over both (`base_shards`, FSDP2).

The emoji world's pipeline with a larger transformer of random weights in place of its own: of its width and depth all that is
measured depends. Each way is a pair of processes of its own, on one machine, talking over gloo. Resident memory is the system's,
beyond what a process took before it loaded anything, after an update; while it loads, a process holds the whole base in the host's memory
in either way. Seconds are of processors that also play the network: on GPUs blocks are gathered while others run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loading import resident
from dina_lrm.worlds.locate import emoji_root

UPDATES = 3


def main(quick: bool = True) -> list[dict[str, Any]]:
    """Quick: 40 MB of blocks. Else 1.2 GB."""
    with tempfile.TemporaryDirectory() as folder:
        world = write_world(Path(folder), heads=4 if quick else 16, layers=4 if quick else 8)
        found = {shards: _measure(world, shards) for shards in (1, 2)}
    whole = found[1]
    return [
        {
            "base": "whole on each" if shards == 1 else f"dealt out over {shards}",
            "MB of blocks": measured["blocks"] / 1e6,
            "MB resident": measured["resident"] / 1e6,
            "resident / whole": measured["resident"] / whole["resident"],
            "seconds an update": measured["seconds"],
            "seconds / whole": measured["seconds"] / whole["seconds"],
            "grad norm": measured["grad norm"],
        }
        for shards, measured in found.items()
    ]


def write_world(folder: Path, heads: int, layers: int) -> Path:
    """`base/`, and `reward/` that reads its first half."""
    import torch
    from diffusers import SD3Transformer2DModel

    from dina_lrm.backbones import BackboneConfig, load_backbone
    from dina_lrm.checkpoint import BaseReference, ModelConfig, save_model
    from dina_lrm.heads import QueryHeadConfig
    from dina_lrm.model import build_network

    base = folder / "base"
    shutil.copytree(emoji_root() / "pipeline", base)
    sizes = json.loads((base / "transformer" / "config.json").read_text(encoding="utf-8"))
    sizes |= {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 64}
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config({**sizes, "caption_projection_dim": 64 * heads}).save_pretrained(
        base / "transformer"
    )
    taps = (layers // 4, layers // 2)
    config = BackboneConfig.model_validate(
        {"kind": "sd3", "image_taps": taps, "text_taps": taps, "max_sequence_length": 32, "adapter": {"rank": 2}}
    )
    head = QueryHeadConfig(width=64, num_queries=2, num_attention_heads=2)
    network = build_network(load_backbone(config, str(base)), head)
    save_model(folder / "reward", network, ModelConfig(backbone=config, base=BaseReference(name=str(base)), head=head))
    return folder


def _measure(world: Path, shards: int) -> dict[str, float]:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launch, "-m", "benchmarks.sharding", str(world), str(shards)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shards} shards: {done.stderr[-2000:]}")
    told: dict[str, float] = json.loads((world / f"told-{shards}.json").read_text(encoding="utf-8"))
    return told


def _on_one_of_two(world: Path, shards: int) -> None:
    import torch
    from diffusers import AutoencoderKL, SD3Transformer2DModel  # noqa: F401 - imports are not what is measured
    from torch.distributed.fsdp import fully_shard  # noqa: F401
    from torch.distributed.tensor import DTensor

    from dina_lrm.alignment import AlignConfig
    from dina_lrm.alignment.run import AlignRun
    from dina_lrm.runtime.accelerator import create_accelerator
    from dina_lrm.worlds.emoji import emoji_prompts

    torch.set_num_threads(1)
    accelerator = create_accelerator(device="cpu")
    prompts = world / f"prompts-{accelerator.process_index}-{shards}.txt"
    prompts.write_text("\n".join(emoji_prompts("train")[:8]), encoding="utf-8")
    values = {
        "base": str(world / "base"),
        "out": world / f"run-{shards}",
        "prompts": {"kind": "file", "path": prompts},
        "algorithm": {"kind": "refl"},
        "rewards": ({"kind": "latent", "model": str(world / "reward")},),
        "adapter": {"rank": 4, "alpha": 8},
        "sampler": {"num_steps": 4, "guidance": 1.0},
        "prompts_per_update": 2,
        "num_updates": UPDATES,
        "base_shards": shards,
        "device": "cpu",
    }
    before = resident()
    run = AlignRun(AlignConfig.model_validate(values), accelerator)
    row = run.update(0)
    started = time.perf_counter()
    for number in range(1, UPDATES):
        row = run.update(number)
    blocks = [p for b in run.cast.policy.backbone.blocks for n, p in b.named_parameters() if "lora_" not in n]
    told = {
        "blocks": sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in blocks),
        "resident": resident() - before,
        "seconds": (time.perf_counter() - started) / (UPDATES - 1),
        "grad norm": row["grad_norm"],
    }
    if accelerator.is_main_process:
        (world / f"told-{shards}.json").write_text(json.dumps(told), encoding="utf-8")
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    _on_one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
