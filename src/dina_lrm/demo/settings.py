"""The budget of the demo, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.errors import InputError
from dina_lrm.evals import ScoringRule
from dina_lrm.evals.rules import Prompts
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.training import LevelsConfig, OptimiserConfig, ScheduleConfig, TrainConfig, ValidationConfig

__all__ = [
    "CONTROLS",
    "FAST",
    "FULL",
    "HEADLINE",
    "RULES",
    "RUNS",
    "SPLITS",
    "Budget",
    "Control",
    "Run",
    "train_config",
]

_LEVELS = (0.2, 0.5, 0.7)

# The ways to ask the model, by the name of their row; the headline row is the one that controls are asked like.
RULES: dict[str, tuple[str, ScoringRule]] = {
    "sigma-0.1": ("One draw, sigma 0.1", ScoringRule((0.1,))),
    "sigma-0.4": ("One draw, sigma 0.4", ScoringRule((0.4,))),
    "tokens": ("Ensemble 0.2, 0.5, 0.7: tokens", ScoringRule(_LEVELS, fusion="tokens")),
    "mean": ("Ensemble 0.2, 0.5, 0.7: mean", ScoringRule(_LEVELS, fusion="mean")),
}
HEADLINE = "mean"

SPLITS = {
    "test": "new prompts",
    "unseen_style": "new prompts, unseen style",
    "unseen_damage": "new prompts, unseen damage",
}


@dataclass(frozen=True)
class Run:
    """One training run of the demo.

    Attributes:
        label: of its curves.
        long_label: of its step.
        initialise: where the backbone's weights come from.
    """

    label: str
    long_label: str
    initialise: Literal["pretrained", "random"]


RUNS = {
    "main": Run("pretrained", "the pretrained backbone", "pretrained"),
    "random": Run("random weights", "random weights, the control", "random"),
}


@dataclass(frozen=True)
class Control:
    """A row of the table that takes something away.

    Attributes:
        label: of the row.
        note: what is taken away.
        run: which model is asked.
        prompts: what it is shown.
    """

    label: str
    note: str
    run: str
    prompts: Prompts


CONTROLS = {
    "random": Control("Random backbone", "same blocks, budget and schedule, no pretraining", "random", "own"),
    "swapped": Control("Prompts swapped", "the model is shown another prompt", "main", "swapped"),
    "blank": Control("Prompts blanked", "the model is shown an empty prompt", "main", "blank"),
}


@dataclass(frozen=True)
class Budget:
    """How much work a demo does.

    Attributes:
        num_steps: optimiser steps of each run.
        batch_size: prompts a step.
        max_candidates: of each prompt; all labelled pairs among them are learned from.
        validate_every: steps between measurements on validation pairs.
        validation_pairs: how many.
        max_prompts: prompts of a split that are measured; None takes all.
        profile_sigmas: levels of the curve over sigma.
        samples: pictures in the grid of the generator.
        rankings: prompts whose candidates are shown in order, twice: the generator's own, and of every origin.
        candidates: of each ranking, at most.
        encoded_pictures: of the art, encoded and decoded to time the VAE.
    """

    num_steps: int = 330
    batch_size: int = 7
    max_candidates: int = 9
    validate_every: int = 110
    validation_pairs: int = 512
    max_prompts: int | None = None
    profile_sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
    samples: int = 40
    rankings: int = 4
    candidates: int = 8
    encoded_pictures: int = 64


FULL = Budget()
FAST = Budget(
    num_steps=30,
    validate_every=15,
    validation_pairs=128,
    max_prompts=12,
    profile_sigmas=(0.05, 0.2, 0.4, 0.6, 0.8),
    samples=20,
    rankings=2,
    encoded_pictures=16,
)


def train_config(world: Path, out: Path, run: Run, budget: Budget, num_blocks: int, seed: int) -> TrainConfig:
    """The configuration of one run; only where the weights come from differs between them.

    Args:
        world: folder of the emoji world.
        out: of the run.
        run: which one.
        budget: of the demo.
        num_blocks: of the whole transformer; all but its last, which returns no text tokens, are kept.
        seed: of everything in the run.
    """
    # A network of eight blocks knows late what agrees with the prompt (benchmarks/probe.py, docs/log.md).
    last = num_blocks - 1
    if last < 1:
        raise InputError(f"the world's transformer must have two blocks or more, got num_blocks={num_blocks}")
    taps = tuple(sorted({1, (1 + last) // 2, last}))
    return TrainConfig(
        data=world / "preferences",
        base=str(world / "pipeline"),
        out=out,
        backbone=BackboneConfig(
            # The T5 of the world is empty: a longer prompt only adds zero tokens, and it was trained with as few as one.
            image_taps=taps,
            text_taps=taps,
            max_sequence_length=1,
            adapter=AdapterConfig(rank=16, alpha=32),
        ),
        initialise=run.initialise,
        # Chosen on the validation split (docs/log.md): at equal accuracy nll is better calibrated on these soft labels.
        head=QueryHeadConfig(dropout=0.1),
        objective="nll",
        levels=LevelsConfig(),
        optimiser=OptimiserConfig(learning_rate=1e-3, adapter_learning_rate=1e-3, weight_decay=0.1),
        schedule=ScheduleConfig(kind="cosine", warm_up=0.05),
        batch_size=budget.batch_size,
        max_candidates=budget.max_candidates,
        num_steps=budget.num_steps,
        ema_decay=0.99,
        device="cpu",
        seed=seed,
        validation=ValidationConfig(every=budget.validate_every, num_pairs=budget.validation_pairs),
        save_every=0,
        keep_last=1,
    )
