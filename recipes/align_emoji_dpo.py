"""Online Flow-DPO on the emoji world, driven by the reward that comes with it: minutes on a CPU.

Of eight samples a prompt the best and the worst by the reward are a pair, noised afresh twice; the reward only ranks.
Learned from prompts of train concepts, measured on those of test concepts, which neither reward nor policy has seen. The judge is
the world's oracle, from which nothing is learned; the monitor stops the run when the reward is being fooled. What the recipes of
this world share stands in `demo/align_settings.py`.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import AlignConfig, DpoConfig
from dina_lrm.demo.align_settings import align_config


def recipe() -> AlignConfig:
    """Chosen on validation prompts (docs/log.md)."""
    return align_config(Path("runs/align-emoji-dpo"), DpoConfig(group_size=8, passes=2), 3e-4, 6, 40)
