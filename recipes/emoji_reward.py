"""The reward that comes with the emoji world (`worlds/emoji/reward`): the demo's recipe with a narrow head, on two rounds.

The second round of preferences is on samples of policies that had climbed the reward of the first: `python -m studies.alignment`
makes it, as `runs/study-alignment/preferences`. The shipped weights are from before that had two policies more, which climb a pixel
reward, so this recipe gives a sister of them. A head of width 64 in place of 192 keeps the model at 1.6 MB in half precision.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.demo.settings import FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.training import TrainConfig
from dina_lrm.worlds.locate import emoji_root


def recipe() -> TrainConfig:
    """`data` is what the study has made."""
    world = emoji_root()
    first = train_config(world, Path("runs/emoji-reward"), RUNS["main"], FULL, num_blocks(world), seed=0)
    return first.model_copy(
        update={
            "data": Path("runs/study-alignment/preferences"),
            "head": QueryHeadConfig(width=64, dropout=0.1),
            "num_steps": 400,
            "save_every": 100,
        }
    )
