"""DRaFT-1 on the emoji world, driven by the reward that comes with it: minutes on a CPU.

The reward's gradient through the last of four steps, with a light pull towards the generator as it was.
Learned from prompts of train concepts, measured on those of test concepts, which neither reward nor policy has seen. The judge is
the world's oracle, from which nothing is learned; the monitor stops the run when the reward is being fooled. What the recipes of
this world share stands in `demo/align_settings.py`.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import AlignConfig, DraftConfig
from dina_lrm.demo.align_settings import align_config


def recipe() -> AlignConfig:
    """Chosen on validation prompts (docs/log.md)."""
    return align_config(Path("runs/align-emoji-draft"), DraftConfig(last_steps=1, kl=0.1), 2e-4, 24, 28)
