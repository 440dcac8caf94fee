"""What the experiment is made of: algorithms, rewards, seeds, and how every run is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dina_lrm.alignment import (
    AlignConfig,
    DraftConfig,
    EvaluationConfig,
    FactoryPromptsConfig,
    FactoryRewardConfig,
    FlowGrpoConfig,
    LatentRewardConfig,
    MonitorConfig,
    NftConfig,
    OptimiserConfig,
    ReflConfig,
    SamplerConfig,
    StepNoiseConfig,
)
from dina_lrm.worlds.locate import emoji_root

__all__ = ["ALGORITHMS", "FULL", "LEVELS", "QUICK", "REWARDS", "Arm", "Budget", "config_of", "load_rival"]


LEVELS = (0.2, 0.5, 0.7)  # that the latent reward is asked at: an ensemble is harder to fool than one level


@dataclass(frozen=True)
class Arm:
    """An algorithm with its settings; the same whatever the reward.

    Attributes:
        label: in figures.
        algorithm: its configuration.
        learning_rate: of AdamW.
        prompts: an update.
        updates: of a run.
    """

    label: str
    algorithm: Any
    learning_rate: float
    prompts: int
    updates: int


ALGORITHMS = {
    "refl": Arm("ReFL", ReflConfig(late=0.5, kl=0.1), 2e-4, 24, 24),
    "draft": Arm("DRaFT-1", DraftConfig(last_steps=1, kl=0.1), 2e-4, 24, 24),
    "flow_grpo": Arm(
        "Flow-GRPO",
        FlowGrpoConfig(
            group_size=8, noise=StepNoiseConfig(kind="cps", level=0.8), clip=1e-2, kl=0.0, shared_noise=True
        ),
        3e-4,
        6,
        36,
    ),
    "nft": Arm("DiffusionNFT", NftConfig(group_size=8, passes=2), 5e-4, 6, 36),
}


@dataclass(frozen=True)
class Reward:
    """What a run is driven by.

    Attributes:
        label: in figures.
        config: of the reward, below the folder of the study.
    """

    label: str
    rival: str | None

    def config(self, root: Path) -> LatentRewardConfig | FactoryRewardConfig:
        """The reward of a run."""
        if self.rival is None:
            return LatentRewardConfig(name="reward", model=str(root / "reward" / "model"), sigmas=LEVELS)
        make, options = "studies.alignment.settings:load_rival", {"folder": str(root / self.rival)}
        return FactoryRewardConfig(name="reward", make=make, options=options)


REWARDS = {
    "latent": Reward("DiNa-LRM on latents", None),
    "pixels": Reward("pixel rival, large", "rival-large"),
    "pixels-small": Reward("pixel rival, small", "rival-small"),
}


@dataclass(frozen=True)
class Budget:
    """How much work the study does.

    Attributes:
        seeds: of the runs.
        rewards: that drive them.
        prompts: held out, that every measurement samples.
        measurements: of a run, after the first.
        share: of each arm's updates.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    rewards: tuple[str, ...] = ("latent", "pixels")
    prompts: int = 128
    measurements: int = 3
    share: float = 1.0


FULL = Budget()
QUICK = Budget(seeds=(0,), prompts=8, measurements=1, share=0.05)


@cache
def load_rival(folder: str) -> Any:
    """A trained rival as a scorer of pictures; one of a folder in memory."""
    from studies.alignment.rival import Rival

    return Rival.from_folder(folder)


def config_of(root: Path, arm: str, reward: str, seed: int, budget: Budget) -> AlignConfig:
    """One run.

    Args:
        root: folder of the study.
        arm: of `ALGORITHMS`.
        reward: of `REWARDS`.
        seed: of it.
        budget: of the study.
    """
    how = ALGORITHMS[arm]
    updates = max(budget.measurements, round(how.updates * budget.share))
    updates -= updates % budget.measurements
    prompts = "dina_lrm.worlds.emoji:emoji_prompts"
    return AlignConfig(
        base=str(emoji_root() / "pipeline"),
        out=root / "runs" / f"{arm}-{reward}-{seed}",
        prompts=FactoryPromptsConfig(make=prompts, options={"split": "train"}),
        algorithm=how.algorithm,
        rewards=(REWARDS[reward].config(root),),
        sampler=SamplerConfig(num_steps=4, guidance=1.0),
        max_sequence_length=1,  # the world's T5 is empty
        optimiser=OptimiserConfig(learning_rate=how.learning_rate, weight_decay=0.0),
        prompts_per_update=how.prompts,
        num_updates=updates,
        ema_decay=0.9,
        device="cpu",
        seed=seed,
        evaluation=EvaluationConfig(
            every=updates // budget.measurements,
            prompts=FactoryPromptsConfig(make=prompts, options={"split": "test"}),
            num_prompts=budget.prompts,
            samples_per_prompt=2,
            judges=(FactoryRewardConfig(name="oracle", make="dina_lrm.worlds.emoji:emoji_scorer"),),
            sigmas=(),
            draws=2,
            batch_size=64,
            grid=24,
            seed=17,
        ),
        monitor=MonitorConfig(action="warn"),
        save_every=0,
        keep_last=1,
    )
