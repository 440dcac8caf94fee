"""Every number of the report, as one record: the page reads nothing else, so page and `results.json` cannot differ."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dina_lrm.evals import AccuracyEstimate, EvalCard, SigmaProfile
from dina_lrm.evals.card import Card, Value

__all__ = [
    "BestOf",
    "DemoResults",
    "EncodingFacts",
    "RankedPicture",
    "RankedPrompt",
    "SamplePicture",
    "SplitFacts",
    "StepTime",
    "TableRow",
    "TrainingFacts",
    "ValidationPoint",
    "WorldFacts",
]


class WorldFacts(Card):
    """What the reward model stands on.

    Attributes:
        name: of the world.
        description: one sentence.
        transformer_parameters: of the whole diffusion transformer.
        transformer_blocks: of the whole diffusion transformer.
        kept_blocks: how many of them the reward model keeps.
        latent_shape: channels, height, width.
        image_size: side of a picture in pixels.
        quality: measured qualities of the world by name, as its own builder wrote them.
    """

    name: str
    description: str
    transformer_parameters: int
    transformer_blocks: int
    kept_blocks: int
    latent_shape: tuple[int, ...]
    image_size: int
    quality: dict[str, Value] = {}


class SplitFacts(Card):
    """Size of a split, and of the part of it that was measured."""

    label: str
    prompts: int
    pairs: int
    candidates: int
    measured_prompts: int
    measured_pairs: int


class EncodingFacts(Card):
    """What encoding took.

    Attributes:
        prompts: unique prompts encoded.
        prompts_per_second: of the text encoders.
        pictures: pictures encoded.
        pictures_per_second: of the VAE.
        reconstruction_psnr: of these pictures, encoded and decoded again, in dB; NaN if there were none.
    """

    prompts: int
    prompts_per_second: float
    pictures: int
    pictures_per_second: Value
    reconstruction_psnr: Value


class ValidationPoint(Card):
    """Validation accuracy at one step."""

    step: int
    sigma: float
    accuracy: Value


class TrainingFacts(Card):
    """One training run.

    Attributes:
        name: key of the run.
        label: for people.
        backbone: "pretrained" or "random".
        head: kind of the head.
        objective: what the loss is.
        steps: optimiser steps.
        batch_size: prompts a step.
        pairs: comparisons that were learned from, over all steps.
        trained_parameters: adapter and head.
        seconds: of the training loop.
        pairs_per_second: over the whole run.
        model: folder of the model, relative to the run.
        at_step: step of each row of the curves.
        loss: mean loss at that step.
        accuracy: accuracy on the step's own training pairs.
        learning_rate: of the head.
        validation: accuracy on validation pairs on the way.
    """

    name: str
    label: str
    backbone: str
    head: str
    objective: str = "fidelity"
    steps: int
    batch_size: int
    pairs: int
    trained_parameters: int
    seconds: float
    pairs_per_second: float
    model: str
    at_step: tuple[int, ...]
    loss: tuple[Value, ...]
    accuracy: tuple[Value, ...]
    learning_rate: tuple[Value, ...]
    validation: tuple[ValidationPoint, ...] = ()


class TableRow(Card):
    """A row of the accuracy table.

    Attributes:
        name: key of the row.
        label: for people.
        group: a way to ask the model, or a control.
        note: what a control takes away.
        cards: evaluation by split.
        gap: the headline row's accuracy less this row's, pair by pair, by split; empty for the headline row itself.
    """

    name: str
    label: str
    group: Literal["model", "control"]
    note: str = ""
    cards: dict[str, EvalCard]
    gap: dict[str, AccuracyEstimate] = {}


class SamplePicture(Card):
    """A picture that the generator drew."""

    prompt: str
    picture: str


class RankedPicture(Card):
    """A candidate, where it came from, and what the model and the oracle say of it; ranks count from 1, the best."""

    picture: str
    origin: str = ""
    reward: float
    oracle_utility: Value
    oracle_rank: int | None


class RankedPrompt(Card):
    """Candidates of one prompt, best first by the model's reward.

    Attributes:
        prompt: what was asked for.
        pool: what the candidates are, such as "of the generator".
        pictures: best first.
    """

    prompt: str
    pool: str
    pictures: tuple[RankedPicture, ...]


class BestOf(Card):
    """What choosing the best of n by reward gains, in oracle utility, over many prompts.

    Attributes:
        pool: what the candidates are.
        n: candidates a prompt.
        prompts: how many.
        best: mean oracle utility of the one the model likes best.
        average: of all n.
        worst: of the one the model likes least.
        oracle_best: of the truly best one.
        captured: `(best - average) / (oracle_best - average)`: the share of the possible gain.
    """

    pool: str
    n: int
    prompts: int
    best: AccuracyEstimate
    average: AccuracyEstimate
    worst: AccuracyEstimate
    oracle_best: AccuracyEstimate
    captured: Value


class StepTime(Card):
    """Wall time of one step of the demo."""

    name: str
    label: str
    seconds: float


class DemoResults(Card):
    """The whole of `results.json`."""

    schema_version: Literal[1] = 1
    version: str
    fast: bool
    seed: int
    finished: str
    machine: dict[str, str] = Field(description="hardware and versions by name")
    world: WorldFacts
    splits: dict[str, SplitFacts]
    encoding: EncodingFacts
    training: tuple[TrainingFacts, ...]
    headline: str = Field(description="name of the table row that the summary quotes")
    table: tuple[TableRow, ...]
    profile: SigmaProfile
    samples: tuple[SamplePicture, ...]
    rankings: tuple[RankedPrompt, ...]
    best_of: tuple[BestOf, ...] = Field(description="the first is quoted in the summary")
    times: tuple[StepTime, ...]
    commands: tuple[str, ...]

    def row(self, name: str) -> TableRow:
        """A row of the table by name."""
        return next(row for row in self.table if row.name == name)

    def save(self, path: Path) -> None:
        """Write `results.json`."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
