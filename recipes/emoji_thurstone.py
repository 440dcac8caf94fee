"""The demo's reward model: the paper's method on the emoji world's own SD3 transformer, minutes on a CPU.

Of 8 blocks of width 192 the first 7 are kept and read after 1, 4 and 7; LoRA of rank 16 and the query head are trained.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.demo.settings import FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.training import TrainConfig
from dina_lrm.worlds.locate import emoji_root


def recipe() -> TrainConfig:
    """The very run of `dina-lrm demo` and `benchmarks/seeds.py`: there is one budget, and it stands in `demo/settings.py`."""
    world = emoji_root()
    return train_config(world, Path("runs/emoji-thurstone"), RUNS["main"], FULL, num_blocks(world), seed=0)
