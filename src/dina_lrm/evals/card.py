"""What an evaluation found, as records that become JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dina_lrm.evals.rules import Prompts
from dina_lrm.metrics import Estimate

__all__ = ["AccuracyEstimate", "CalibrationCard", "EvalCard", "ReliabilityBin", "SigmaProfile", "Value"]

# JSON has no NaN: what could not be measured is written as null and read back as NaN.
Value = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]


class Card(BaseModel):
    """Base of the records: frozen, no unknown key, NaN as null."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class AccuracyEstimate(Card):
    """A mean with a 95 % bootstrap interval over prompts."""

    value: Value
    low: Value
    high: Value
    pairs: int
    prompts: int

    @staticmethod
    def of(estimate: Estimate) -> AccuracyEstimate:
        """From the metric's record."""
        return AccuracyEstimate(
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            pairs=estimate.count,
            prompts=estimate.clusters,
        )


class ReliabilityBin(Card):
    """Pairs of about one confidence: what was predicted, and what share of the votes the favoured side got."""

    confidence: float
    share: AccuracyEstimate


class CalibrationCard(Card):
    """Predicted P(chosen) against votes; see `dina_lrm.metrics.calibration` for the formulas."""

    ece: float
    ece_interval: tuple[Value, Value] = Field(
        default=(math.nan, math.nan),
        description="95 % bootstrap over prompts; it leans upwards, as the error itself does",
    )
    ece_floor: Value = Field(default=math.nan, description="the error that the truth itself would show on so few votes")
    brier: AccuracyEstimate
    nll: AccuracyEstimate
    vote_entropy: float = Field(description="the least log loss that any model could reach on these votes")
    reliability: tuple[ReliabilityBin, ...]


class EvalCard(Card):
    """One reward model, one split, one scoring rule.

    Attributes:
        accuracy: order of the utilities against the majority of the votes; a predicted tie counts half, pairs whose
            votes are tied are left out and counted in `vote_ties`.
        oracle_accuracy: against the order of the noise-free oracle utility, over all pairs with one.
        ceiling: the oracle's own order against the votes: what no model can beat but by luck.
        kendall_tau: mean over prompts of tau-b between utilities and oracle utilities of a prompt's candidates.
    """

    split: str
    rule: str
    sigmas: tuple[float, ...]
    draws: int
    fusion: str
    prompts_shown: Prompts
    seed: int
    prompts: int
    candidates: int
    pairs: int
    vote_ties: int
    predicted_ties: int
    accuracy: AccuracyEstimate
    accuracy_by_kind: dict[str, AccuracyEstimate]
    oracle_accuracy: AccuracyEstimate
    oracle_accuracy_by_kind: dict[str, AccuracyEstimate]
    ceiling: AccuracyEstimate
    ceiling_by_kind: dict[str, AccuracyEstimate]
    kendall_tau: AccuracyEstimate
    calibration: CalibrationCard
    seconds: float
    candidates_per_second: float

    def to_json(self) -> str:
        """One JSON object on one line."""
        return self.model_dump_json()

    def save(self, path: Path) -> None:
        """Write the card as indented JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class SigmaProfile(Card):
    """Accuracy of single draws over the noise level, split by kind of pair: what each sigma sees.

    Attributes:
        split: where it was measured.
        sigmas: the levels `[k]`.
        all: over every kind `[k]`.
        by_kind: the same for the pairs of each kind.
    """

    split: str
    sigmas: tuple[float, ...]
    all: tuple[AccuracyEstimate, ...]
    by_kind: dict[str, tuple[AccuracyEstimate, ...]]

    def to_json(self) -> str:
        """One JSON object on one line."""
        return self.model_dump_json()
