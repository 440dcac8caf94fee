"""A run of preference optimisation on the emoji world: what its recipes share, in one place."""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    FactoryPromptsConfig,
    FactoryRewardConfig,
    LatentRewardConfig,
    OptimiserConfig,
    SamplerConfig,
)
from dina_lrm.alignment.config import AnyAlgorithm
from dina_lrm.worlds.locate import emoji_root

__all__ = ["LEVELS", "align_config", "emoji_prompt_set", "emoji_reward", "oracle_judge"]

LEVELS = (0.2, 0.5, 0.7)  # the reward is asked at: several are harder to fool than one


def emoji_prompt_set(split: str) -> FactoryPromptsConfig:
    """The world's prompts of a split: policies learn from those of train concepts and are judged on others."""
    return FactoryPromptsConfig(make="dina_lrm.worlds.emoji:emoji_prompts", options={"split": split})


def emoji_reward() -> LatentRewardConfig:
    """The reward that comes with the world."""
    return LatentRewardConfig(name="dina", model=str(emoji_root() / "reward"), sigmas=LEVELS)


def oracle_judge() -> FactoryRewardConfig:
    """The world's oracle, from which nothing is learned."""
    return FactoryRewardConfig(name="oracle", make="dina_lrm.worlds.emoji:emoji_scorer", differentiable=False)


def align_config(
    out: Path, algorithm: AnyAlgorithm, learning_rate: float, prompts_per_update: int, num_updates: int
) -> AlignConfig:
    """Four steps without guidance: there the generator has most to gain, and an update takes a second or two on a core.

    Args:
        out: of the run.
        algorithm: what learns.
        learning_rate: of AdamW.
        prompts_per_update: of an update.
        num_updates: of the run; it is measured four times on the way.
    """
    every = max(1, num_updates // 4)
    return AlignConfig(
        base=str(emoji_root() / "pipeline"),
        out=out,
        prompts=emoji_prompt_set("train"),
        algorithm=algorithm,
        rewards=(emoji_reward(),),
        sampler=SamplerConfig(num_steps=4, guidance=1.0),
        max_sequence_length=1,  # the world's T5 is empty
        cut_prompts=True,  # a single one of the world's 3,724 loses a token
        optimiser=OptimiserConfig(learning_rate=learning_rate, weight_decay=0.0),
        prompts_per_update=prompts_per_update,
        num_updates=num_updates,
        ema_decay=0.9,
        device="cpu",
        evaluation=EvaluationConfig(
            every=every,
            prompts=emoji_prompt_set("test"),
            num_prompts=64,
            judges=(oracle_judge(),),
            draws=2,
            batch_size=64,
        ),
        save_every=every,
    )
