"""Run under torchrun: train on two processes that hold the base whole, then on two that hold it together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from dina_lrm.cli.recipes import read_recipe
from dina_lrm.config import apply_overrides
from dina_lrm.training import TrainConfig, Trainer
from tests.training.test_large_recipes import CASES, SMALLER

# A batch a pair: of three held-out pairs one process has two, the other one.
UNEVEN = ["validation.num_pairs=3", "validation.batch_size=1", "validation.every=1"]
EXACT = ["dtype=float32", "optimiser.learning_rate=0.01", "num_steps=3"]


def main(data: str, base: str, out: str, precision: str) -> None:
    """Two micro steps of a pair a process."""
    torch.set_num_threads(1)
    dealt = {}
    for shards in (1, 2):
        places = [f"data={data}", f"base={base}", f"out={out}/{shards}"]
        changes = [*places, f"mixed_precision={precision}", f"base_shards={shards}", "batch_size=1"]
        recipe = read_recipe("sd35m_thurstone", TrainConfig)
        config = apply_overrides(
            recipe, [*SMALLER, *CASES["sd35m_thurstone"][2], *UNEVEN, *EXACT, *changes, "gradient_accumulation_steps=2"]
        )
        trainer = Trainer(config, quiet=True)
        trainer.run()
        assert trainer.network is not None
        named = trainer.network.backbone.named_parameters()
        dealt[shards] = sum(isinstance(p, DTensor) for name, p in named if "lora_" not in name)
    Path(out, "dealt.json").write_text(json.dumps(dealt))


if __name__ == "__main__":
    main(*sys.argv[1:])
