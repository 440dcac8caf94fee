"""Step-level preference optimisation on the emoji world, driven by the reward that comes with it: minutes on a CPU.

Of four next states drawn from one noisy state the best and the worst, by the reward as it reads states, are a pair.
Learned from prompts of train concepts, measured on those of test concepts, which neither reward nor policy has seen. The judge is
the world's oracle, from which nothing is learned; the monitor stops the run when the reward is being fooled. What the recipes of
this world share stands in `demo/align_settings.py`.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import AlignConfig, StepDpoConfig
from dina_lrm.demo.align_settings import align_config


def recipe() -> AlignConfig:
    """Chosen on validation prompts (docs/log.md)."""
    return align_config(Path("runs/align-emoji-step-dpo"), StepDpoConfig(candidates=4, band=(0.2, 0.95)), 3e-4, 12, 40)
