"""How big the study is, and what is tried on validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dina_lrm.worlds.locate import emoji_root

__all__ = ["FULL", "QUICK", "REWARD", "Budget"]

REWARD: Path = emoji_root() / "reward"


@dataclass(frozen=True)
class Budget:
    """How much work the study does.

    Attributes:
        steps: of the sampler, without guidance.
        pool: trajectories a prompt.
        finished: N of best-of-N, whose cost a schedule may have.
        validation: prompts that choose, a concept each.
        test: prompts that are asked once.
        subsets: of the pool, over which a schedule's outcome is averaged.
    """

    steps: int = 12
    pool: int = 16
    finished: tuple[int, ...] = (2, 4)
    validation: int = 136
    test: int = 328
    subsets: int = 64


FULL = Budget()
QUICK = Budget(steps=4, pool=6, finished=(2,), validation=4, test=4, subsets=4)
