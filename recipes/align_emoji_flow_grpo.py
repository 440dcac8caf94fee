"""Flow-GRPO on the emoji world, driven by the reward that comes with it: minutes on a CPU.

Groups of eight that begin as the same noise, with CPS noise in every step but the last; the reward only ranks.
Learned from prompts of train concepts, measured on those of test concepts, which neither reward nor policy has seen. The judge is
the world's oracle, from which nothing is learned; the monitor stops the run when the reward is being fooled. What the recipes of
this world share stands in `demo/align_settings.py`.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import AlignConfig, FlowGrpoConfig, StepNoiseConfig
from dina_lrm.demo.align_settings import align_config


def recipe() -> AlignConfig:
    """Chosen on validation prompts (docs/log.md)."""
    algorithm = FlowGrpoConfig(
        group_size=8, noise=StepNoiseConfig(kind="cps", level=0.8), clip=1e-2, kl=0.0, shared_noise=True
    )
    return align_config(Path("runs/align-emoji-flow-grpo"), algorithm, 3e-4, 6, 40)
