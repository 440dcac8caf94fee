"""A calibration in a model folder: saved without touching a weight, read by whoever read schema 1 before."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dina_lrm.checkpoint import (
    CalibrationConfig,
    LevelCalibrationConfig,
    calibrated_copy,
    describe,
    is_published,
    load_model,
    save_calibration,
    save_model,
    verify_model,
)
from dina_lrm.checkpoint.folder import read_config
from dina_lrm.errors import CheckpointError
from dina_lrm.preference import Calibration, TabulatedThurstone
from dina_lrm.scoring import RewardModel
from dina_lrm.types import Spread
from tests.golden_fixtures import PIPELINE, PUBLISHED

BASE = str(PIPELINE)
LEVELS = (
    LevelCalibrationConfig(
        sigma=0.1, centre=1.0, spread=2.0, deviation=0.5, settled_deviation=0.4, margin_variance=0.01, margin_dof=3.0
    ),
    LevelCalibrationConfig(
        sigma=0.6, centre=0.0, spread=1.0, deviation=1.5, settled_deviation=1.2, margin_variance=0.02
    ),
)
FITTED = CalibrationConfig(fitted_on="x, validation", levels=LEVELS, disagreement=0.5, kind="logistic")


@pytest.fixture
def folder(golden_model: RewardModel, tmp_path: Path) -> Path:
    golden_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_builds_what_was_fitted() -> None:
    built = FITTED.build()
    assert built.kind == "logistic" and built.levels[0].margin == Spread(0.01, 3.0)
    assert built.levels[1].margin == Spread(0.02, math.inf)
    assert built.choice == TabulatedThurstone((0.1, 0.6), (0.5, 1.5), (0.4, 1.2), 0.5)


def test_a_folder_of_before_still_reads(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["calibration"] = {"scale": 2.0, "shift": 0.5, "fitted_on": None}
    (folder / "config.json").write_text(json.dumps(raw))
    assert read_config(folder).calibration.build() == Calibration(2.0, 0.5)


def test_saving_touches_nothing_but_the_configuration(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "config.json"}
    save_calibration(folder, FITTED)
    verify_model(folder)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read_config(folder).calibration == FITTED
    assert describe(folder)["calibration"]["levels"][0]["spread"] == 2.0
    model = RewardModel.from_pretrained(folder, base=BASE)
    assert model.calibration == FITTED.build()
    model.save_pretrained(folder)
    assert read_config(folder).calibration == FITTED


def test_cards_beside_a_model_go_when_it_is_replaced(folder: Path) -> None:
    (folder / "calibration.json").write_text("{}")
    (folder / "reliability.png").touch()
    verify_model(folder)
    loaded = load_model(folder, base=BASE)
    save_model(folder, loaded.network, loaded.config)
    assert not (folder / "calibration.json").exists()


def test_a_published_model_is_copied_to_our_layout(tmp_path: Path) -> None:
    assert is_published(PUBLISHED)
    with pytest.raises(CheckpointError):
        save_calibration(PUBLISHED, FITTED)
    calibrated_copy(PUBLISHED, tmp_path / "copy", FITTED)
    assert not is_published(tmp_path / "copy")
    model = RewardModel.from_pretrained(tmp_path / "copy", base=BASE)
    assert model.calibration == FITTED.build()


def test_a_copy_still_finds_a_base_that_lay_beside_the_original(folder: Path, tmp_path: Path) -> None:
    (folder / "base").symlink_to(PIPELINE.resolve(), target_is_directory=True)
    raw = json.loads((folder / "config.json").read_text())
    raw["base"]["name"] = "base"
    (folder / "config.json").write_text(json.dumps(raw))
    calibrated_copy(folder, tmp_path / "copy", FITTED)
    assert RewardModel.from_pretrained(tmp_path / "copy").calibration.kind == "logistic"


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": LEVELS[::-1]},
        {"levels": (LEVELS[0].model_copy(update={"settled_deviation": 0.9}),)},
        {"levels": [{**LEVELS[0].model_dump(), "spread": 0}]},
        {"kind": "cubic"},
    ],
    ids=["order", "settled", "spread", "kind"],
)
def test_a_calibration_that_cannot_be_is_no_model_folder(folder: Path, wrong: dict[str, object]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["calibration"] |= json.loads(
        CalibrationConfig.model_construct(**wrong).model_dump_json(include=set(wrong), warnings=False)
    )
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"calibration"):
        read_config(folder)
