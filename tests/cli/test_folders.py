"""`info` and `verify` on what lies on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dina_lrm.checkpoint import CalibrationConfig, LevelCalibrationConfig, calibrated_copy
from dina_lrm.data import Candidate, PreferencePair, write_preference_data
from tests.golden_fixtures import PUBLISHED


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PUBLISHED, tmp_path / "model"))


def test_info_of_a_model(dina, model: Path) -> None:
    row = json.loads(dina("info", model, "--json").out)
    assert row["layout"] == "published"
    assert row["backbone"]["image_taps"] == [1, 2, 4]
    text = dina("info", model).out
    assert "  image_taps: 1, 2, 4\n" in text and "signature: none" in text


def test_info_of_a_calibration_without_parameters(dina, model: Path, tmp_path: Path) -> None:
    """A single level tells no two parameters."""
    level = LevelCalibrationConfig(sigma=0.3, centre=1.0, spread=2.0, deviation=0.5, settled_deviation=0.4)
    calibrated_copy(model, tmp_path / "copy", CalibrationConfig(fitted_on="x", levels=(level,)))
    ran = dina("info", tmp_path / "copy")
    assert ran.status == 0, ran.err
    assert "sigma 0.3: reward (utility - 1) / 2" in ran.out and "clean_variance" not in ran.out


def test_info_of_nothing(dina, tmp_path: Path) -> None:
    ran = dina("info", tmp_path)
    assert ran.status == 2 and str(tmp_path) in ran.one_line()


def test_verify_a_whole_model(dina, model: Path) -> None:
    ran = dina("verify", model)
    assert (ran.status, ran.err) == (0, "") and "whole" in ran.out
    told = json.loads(dina("verify", model, "--json").out)
    assert told.pop("hashed") in (True, False)
    assert told == {"path": str(model), "whole": True, "fault": None}


def test_verify_tells_the_first_fault_and_exits_1(dina, model: Path) -> None:
    head = model / "checkpoint" / "rm_head.pt"
    head.write_bytes(head.read_bytes()[:1000])
    ran = dina("verify", model)
    assert ran.status == 1 and "rm_head.pt" in ran.one_line()
    row = json.loads(dina("verify", model, "--json").out)
    assert row["whole"] is False and "rm_head.pt" in row["fault"]


def test_verify_needs_a_folder(dina, tmp_path: Path) -> None:
    ran = dina("verify", tmp_path / "none")
    assert ran.status == 2
    ran.one_line()


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    prompt = "a red apple"
    candidates = [Candidate("a", prompt, 0), Candidate("b", prompt, 1)]
    pairs = {"train": [PreferencePair(prompt, "a", "b", 7, 2)]}
    write_preference_data(tmp_path / "preferences", candidates, torch.ones(2, 4, 2, 2), pairs, "two apples")
    return tmp_path / "preferences"


def test_info_and_verify_of_preferences(dina, preferences: Path) -> None:
    row = json.loads(dina("info", preferences, "--json").out)
    assert (row["name"], row["splits"]) == ("two apples", ["train"])
    assert dina("verify", preferences).status == 0
    (preferences / "pairs" / "train.parquet").write_bytes(b"torn")
    ran = dina("verify", preferences)
    assert ran.status == 1 and "train.parquet" in ran.one_line()
