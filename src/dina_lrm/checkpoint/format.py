"""What a model folder says about itself: `config.json`, schema 1."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dina_lrm.backbones import BackboneConfig
from dina_lrm.config import Config
from dina_lrm.errors import InputError
from dina_lrm.heads import HeadConfig
from dina_lrm.preference import (
    BradleyTerry,
    Calibration,
    CalibrationLevel,
    RewardKind,
    TabulatedThurstone,
    Thurstone,
)
from dina_lrm.types import Spread

SCHEMA_VERSION = 1


class ThurstoneConfig(Config):
    """Builds a `Thurstone` law.

    Attributes:
        scale: growth of the variance with squared sigma.
        min_variance: variance of a clean image.
    """

    kind: Literal["thurstone"] = "thurstone"
    scale: float = Field(2.0, ge=0)
    min_variance: float = Field(0.05, gt=0)

    def build(self) -> Thurstone:
        """The law."""
        return Thurstone(self.scale, self.min_variance)


class BradleyTerryConfig(Config):
    """Builds a `BradleyTerry` law.

    Attributes:
        margin: what the chosen utility must lead by.
    """

    kind: Literal["bradley_terry"] = "bradley_terry"
    margin: float = 0.0

    def build(self) -> BradleyTerry:
        """The law."""
        return BradleyTerry(self.margin)


LikelihoodConfig = Annotated[ThurstoneConfig | BradleyTerryConfig, Field(discriminator="kind")]


class BaseReference(Config):
    """Which pretrained pipeline a model stands on.

    Attributes:
        name: folder or hub id.
        revision: of the hub repository, if one was pinned.
        random_seed: the base's network has random weights drawn with this seed instead of its own: a control.
        signature: class, sizes and a few weights; None where the publisher saved none.
    """

    name: str
    revision: str | None = None
    random_seed: int | None = None
    signature: dict[str, Any] | None = None


class ScoringConfig(Config):
    """How states are made from latents when a score is asked for.

    Attributes:
        snap_to_schedule: take the nearest level of the base scheduler's table, as the authors' release does.
        add_noise: False scores clean latents under the stated sigma.
    """

    snap_to_schedule: bool = False
    add_noise: bool = True


class LevelCalibrationConfig(Config):
    """What was fitted at one noise level.

    Attributes:
        sigma: the level.
        centre: utility whose reward is 0 (affine) or 1/2 (logistic).
        spread: utility that one unit of reward is worth, or of its logit.
        deviation: `sqrt(2 var)` of the fitted law of choice for a margin on one draw.
        settled_deviation: the same for a margin averaged over endless draws.
        margin_variance: of a pair's margin from draw to draw; None if it was not measured.
        margin_dof: draws of one pair that this is worth; None beside a variance means that all pairs are alike.
    """

    sigma: float = Field(ge=0, le=1)
    centre: float
    spread: float = Field(gt=0)
    deviation: float = Field(gt=0)
    settled_deviation: float = Field(gt=0)
    margin_variance: float | None = Field(None, ge=0)
    margin_dof: float | None = Field(None, gt=0)

    def build(self) -> CalibrationLevel:
        """The level's map and the spread of its margins."""
        dof = math.inf if self.margin_dof is None else self.margin_dof
        margin = None if self.margin_variance is None else Spread(self.margin_variance, dof)
        return CalibrationLevel(self.sigma, self.centre, self.spread, margin)


class LawParametersConfig(Config):
    """The two-parameter law `var(sigma) = scale sigma^2 + min_variance` by maximum likelihood: told, not used.

    Attributes:
        scale: k.
        scale_error: its standard error over prompts.
        min_variance: variance of a clean image.
        min_variance_error: its standard error over prompts.
    """

    scale: float
    scale_error: float
    min_variance: float
    min_variance_error: float


class CalibrationScore(Config):
    """How well P(a preferred) tells the votes.

    Attributes:
        ece: expected calibration error.
        ece_low: lower end of its 95 % bootstrap interval over prompts.
        ece_high: upper end.
        brier: mean squared distance from the share of votes.
        nll: mean log loss in nats.
    """

    ece: float
    ece_low: float
    ece_high: float
    brier: float
    nll: float


class CalibrationQuality(Config):
    """One way of asking, before and after; the fit is judged on prompts that it was not made on.

    Attributes:
        label: what was asked.
        sigmas: the levels.
        draws: of noise at every level.
        before: with the law that the model was trained under.
        after: with the fitted law; None where it was not judged.
        ece_floor: the calibration error that the truth itself would show on so few votes.
        vote_entropy: the log loss that the truth itself would have.
    """

    label: str
    sigmas: tuple[float, ...]
    draws: int
    before: CalibrationScore
    after: CalibrationScore | None = None
    ece_floor: float
    vote_entropy: float


class CalibrationConfig(Config):
    """A fitted `Calibration` and how well it did.

    Attributes:
        scale: of the map utility to reward.
        shift: of the map utility to reward.
        fitted_on: data and split; None while it is the identity.
        kind: of the map.
        levels: what was fitted at each level.
        disagreement: of the fitted law: how fast two levels come to see different things.
        parameters: k and the clean variance; None where the votes do not tell them apart.
        pairs: how many it was fitted on.
        prompts: that these belong to.
        draws: of noise at every level.
        seed: of the noise.
        quality: how well probabilities tell the votes, by way of asking.
        not_judged: why the fit was not judged on prompts that it was not made on; None where it was.
    """

    scale: float = Field(1.0, gt=0)
    shift: float = 0.0
    fitted_on: str | None = None
    kind: RewardKind = "affine"
    levels: tuple[LevelCalibrationConfig, ...] = ()
    disagreement: float = Field(0.0, ge=0)
    parameters: LawParametersConfig | None = None
    pairs: int | None = None
    prompts: int | None = None
    draws: int | None = None
    seed: int | None = None
    quality: tuple[CalibrationQuality, ...] = ()
    not_judged: str | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        try:
            self.build()
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    def build(self) -> Calibration:
        """Map and law; without levels there is no fitted law."""
        law = None
        if self.levels:
            law = TabulatedThurstone(
                tuple(level.sigma for level in self.levels),
                tuple(level.deviation for level in self.levels),
                tuple(level.settled_deviation for level in self.levels),
                self.disagreement,
            )
        return Calibration(self.scale, self.shift, self.kind, tuple(level.build() for level in self.levels), law)


class FileEntry(Config):
    """A file of the folder, so that a damaged one is noticed.

    Attributes:
        sha256: of its bytes, hexadecimal.
        bytes: its size.
    """

    sha256: str
    bytes: int


class ModelConfig(Config):
    """The whole of `config.json`.

    Attributes:
        schema_version: of this layout.
        backbone: what is kept and read.
        base: which pretrained pipeline.
        head: kind and sizes.
        likelihood: law of choice that the utilities were learned under.
        scoring: how states are made.
        calibration: utility to reward.
        provenance: free JSON: training configuration, hash of the data, steps, torch version.
        notes: what a reader of `info` should know, such as values that were assumed.
        files: size and hash of every other file.
    """

    schema_version: Literal[1] = 1
    backbone: BackboneConfig
    base: BaseReference
    head: HeadConfig
    likelihood: LikelihoodConfig = ThurstoneConfig()
    scoring: ScoringConfig = ScoringConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    provenance: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    files: dict[str, FileEntry] = {}
