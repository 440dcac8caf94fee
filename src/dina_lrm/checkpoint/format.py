"""What a model folder says about itself: `config.json`, schema 1."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dina_lrm.backbones import BackboneConfig
from dina_lrm.config import Config
from dina_lrm.heads import HeadConfig
from dina_lrm.preference import BradleyTerry, Calibration, Thurstone

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


class CalibrationConfig(Config):
    """A fitted `Calibration` and how well it did.

    Attributes:
        scale: of the map utility to reward.
        shift: of the map utility to reward.
        fitted_on: data and split; None while it is the identity.
    """

    scale: float = Field(1.0, gt=0)
    shift: float = 0.0
    fitted_on: str | None = None

    def build(self) -> Calibration:
        """The map."""
        return Calibration(self.scale, self.shift)


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
