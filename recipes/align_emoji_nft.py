"""DiffusionNFT on the emoji world, driven by the reward that comes with it: minutes on a CPU.

Groups of eight, noised afresh twice; the reward only ranks.
Learned from prompts of train concepts, measured on those of test concepts, which neither the reward nor the policy has seen. The
judge is the world's oracle, from which nothing is learned; the monitor stops the run when the reward is being fooled.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    FactoryPromptsConfig,
    FactoryRewardConfig,
    LatentRewardConfig,
    NftConfig,
    OptimiserConfig,
    SamplerConfig,
)
from dina_lrm.worlds.locate import emoji_root


def recipe() -> AlignConfig:
    """Four steps without guidance: what an aligned generator gains most in."""
    world, prompts = emoji_root(), "dina_lrm.worlds.emoji:emoji_prompts"
    return AlignConfig(
        base=str(world / "pipeline"),
        out=Path("runs/align-emoji-nft"),
        prompts=FactoryPromptsConfig(make=prompts, options={"split": "train"}),
        algorithm=NftConfig(group_size=8, passes=2),
        rewards=(LatentRewardConfig(name="dina", model=str(world / "reward"), sigmas=(0.2, 0.5, 0.7)),),
        sampler=SamplerConfig(num_steps=4, guidance=1.0),
        max_sequence_length=1,  # the world's T5 is empty
        optimiser=OptimiserConfig(learning_rate=5e-4, weight_decay=0.0),
        prompts_per_update=6,
        num_updates=40,
        ema_decay=0.9,
        device="cpu",
        evaluation=EvaluationConfig(
            every=10,
            prompts=FactoryPromptsConfig(make=prompts, options={"split": "test"}),
            num_prompts=64,
            judges=(
                FactoryRewardConfig(name="oracle", make="dina_lrm.worlds.emoji:emoji_scorer", differentiable=False),
            ),
            draws=2,
            batch_size=64,
        ),
        save_every=10,
    )
