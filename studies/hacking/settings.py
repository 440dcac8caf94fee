"""Runs that are driven into hacking on purpose, and runs that are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    FactoryPromptsConfig,
    FactoryRewardConfig,
    LatentRewardConfig,
    MonitorConfig,
    OptimiserConfig,
    ReflConfig,
    SamplerConfig,
)
from dina_lrm.worlds.locate import emoji_root

__all__ = ["ARMS", "FULL", "QUICK", "Arm", "Budget", "config_of"]

SINGLE, SEVERAL = (0.4,), (0.2, 0.5, 0.7)
# The demo's reward has never seen what a policy does to fool it; the world's own has learned from such samples too.
NAIVE, SEASONED = Path("dina-lrm/model"), emoji_root() / "reward"


@dataclass(frozen=True)
class Arm:
    """One way to climb the reward by ReFL.

    Attributes:
        label: in the page.
        hacked: whether it is meant to fool the reward.
        reward: folder of the model, below that of the study unless it is absolute.
        learning_rate: of AdamW.
        kl: pull towards the generator as it was.
        sigmas: levels of the reward.
        updates: of a run.
        every: updates between two measurements.
    """

    label: str
    hacked: bool
    reward: Path
    learning_rate: float
    kl: float
    sigmas: tuple[float, ...]
    updates: int = 54
    every: int = 6


ARMS = {
    "single": Arm("naive reward, one level, no pull", True, NAIVE, 3e-4, 0.0, SINGLE),
    # At this rate six updates are enough to go from well to ruined: what is measured so seldom cannot be caught.
    "fast": Arm("seasoned reward, three levels, no pull, high rate", True, SEASONED, 1e-3, 0.0, SEVERAL, 24, 2),
    "pulled": Arm("naive reward, strong pull", False, NAIVE, 3e-4, 10.0, SINGLE),
    "recipe": Arm("seasoned reward, as recipes/align_emoji_refl but longer", False, SEASONED, 2e-4, 0.1, SEVERAL),
}


@dataclass(frozen=True)
class Budget:
    """How much work the study does.

    Attributes:
        seeds: of each arm.
        updates: of a run; None takes the arm's own.
        every: updates between two measurements; None likewise.
        prompts: held out, two samples each.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int | None = None
    every: int | None = None
    prompts: int = 48


FULL = Budget()
QUICK = Budget(seeds=(0,), updates=4, every=2, prompts=8)


def config_of(root: Path, arm: str, seed: int, budget: Budget) -> AlignConfig:
    """One run; the monitor only speaks, so that what would have come is seen.

    Args:
        root: folder of the study.
        arm: of `ARMS`.
        seed: of it.
        budget: of the study.
    """
    how = ARMS[arm]
    prompts = "dina_lrm.worlds.emoji:emoji_prompts"
    return AlignConfig(
        base=str(emoji_root() / "pipeline"),
        out=root / "runs" / f"{arm}-{seed}",
        prompts=FactoryPromptsConfig(make=prompts, options={"split": "train"}),
        algorithm=ReflConfig(late=0.5, kl=how.kl),
        rewards=(LatentRewardConfig(name="reward", model=str(root / how.reward), sigmas=how.sigmas),),
        sampler=SamplerConfig(num_steps=4, guidance=1.0),
        max_sequence_length=1,  # the world's T5 is empty
        optimiser=OptimiserConfig(learning_rate=how.learning_rate, weight_decay=0.0),
        prompts_per_update=8,
        num_updates=budget.updates or how.updates,
        device="cpu",
        seed=seed,
        evaluation=EvaluationConfig(
            every=budget.every or how.every,
            prompts=FactoryPromptsConfig(make=prompts, options={"split": "test"}),
            num_prompts=budget.prompts,
            judges=(FactoryRewardConfig(name="oracle", make="dina_lrm.worlds.emoji:emoji_scorer"),),
            sigmas=(0.1, 0.4, 0.7),
            draws=2,
            batch_size=32,
            grid=24,
            seed=17,
        ),
        monitor=MonitorConfig(action="warn"),
        save_every=0,
        keep_last=1,
    )
