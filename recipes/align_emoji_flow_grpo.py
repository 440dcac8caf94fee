"""Flow-GRPO on the emoji world, driven by the reward that comes with it: minutes on a CPU.

Groups of eight that begin as the same noise, with CPS noise in every step but the last; the reward only ranks.
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
    FlowGrpoConfig,
    LatentRewardConfig,
    OptimiserConfig,
    SamplerConfig,
    StepNoiseConfig,
)
from dina_lrm.worlds.locate import emoji_root


def recipe() -> AlignConfig:
    """Four steps without guidance: what an aligned generator gains most in."""
    world, prompts = emoji_root(), "dina_lrm.worlds.emoji:emoji_prompts"
    return AlignConfig(
        base=str(world / "pipeline"),
        out=Path("runs/align-emoji-flow-grpo"),
        prompts=FactoryPromptsConfig(make=prompts, options={"split": "train"}),
        algorithm=FlowGrpoConfig(
            group_size=8, noise=StepNoiseConfig(kind="cps", level=0.8), clip=1e-2, kl=0.0, shared_noise=True
        ),
        rewards=(LatentRewardConfig(name="dina", model=str(world / "reward"), sigmas=(0.2, 0.5, 0.7)),),
        sampler=SamplerConfig(num_steps=4, guidance=1.0),
        max_sequence_length=1,  # the world's T5 is empty
        optimiser=OptimiserConfig(learning_rate=3e-4, weight_decay=0.0),
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
