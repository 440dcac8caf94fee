"""What the experiment is made of: algorithms, rewards, seeds, and how every run is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dina_lrm.alignment import (
    AlignConfig,
    DraftConfig,
    FactoryRewardConfig,
    FlowGrpoConfig,
    LatentRewardConfig,
    MonitorConfig,
    NftConfig,
    ReflConfig,
    StepNoiseConfig,
)
from dina_lrm.demo.align_settings import LEVELS, align_config

__all__ = ["ALGORITHMS", "FULL", "QUICK", "REWARDS", "Arm", "Budget", "config_of", "load_rival", "rival_config"]


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
            group_size=8, noise=StepNoiseConfig(kind="cps", level=0.8), clip=1e-2, kl=2e-4, shared_noise=True
        ),
        3e-4,
        12,
        30,
    ),
    "nft": Arm("DiffusionNFT", NftConfig(group_size=8, passes=2), 5e-4, 6, 60),
}


@dataclass(frozen=True)
class Reward:
    """What a run is driven by.

    Attributes:
        label: in figures.
        rival: folder of a pixel reward, below that of the study; None is the latent reward.
    """

    label: str
    rival: str | None

    def folder(self, root: Path) -> Path:
        """Of its weights."""
        return root / (self.rival or "reward/model")

    def config(self, root: Path) -> LatentRewardConfig | FactoryRewardConfig:
        """The reward of a run."""
        if self.rival is None:
            return LatentRewardConfig(name="reward", model=str(self.folder(root)), sigmas=LEVELS)
        from studies.alignment.scales import weight_of

        return rival_config(root / self.rival).model_copy(update={"weight": weight_of(root, self.rival)})


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


def rival_config(folder: Path) -> FactoryRewardConfig:
    """A trained rival as the reward of a run."""
    make = "studies.alignment.settings:load_rival"
    return FactoryRewardConfig(name="reward", make=make, options={"folder": str(folder)})


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
    every = updates // budget.measurements
    plain = align_config(
        root / "runs" / f"{arm}-{reward}-{seed}", how.algorithm, how.learning_rate, how.prompts, updates
    )
    held_out = {"every": every, "num_prompts": budget.prompts, "sigmas": (), "grid": 24, "seed": 17}
    return plain.model_copy(
        update={
            "rewards": (REWARDS[reward].config(root),),
            "seed": seed,
            "evaluation": plain.evaluation.model_copy(update=held_out),
            "monitor": MonitorConfig(action="warn"),
            "save_every": 0,
            "keep_last": 1,
        }
    )
