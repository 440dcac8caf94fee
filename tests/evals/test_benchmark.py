"""Tasks by name, file and folder; a card says what was asked and under which conventions."""

from __future__ import annotations

from pathlib import Path

import pytest

from dina_lrm.checkpoint import CalibrationConfig
from dina_lrm.data import PreferenceData
from dina_lrm.errors import ConfigError, DataError
from dina_lrm.evals import BenchmarkCard, CalibrationSettings, available_tasks, calibrate, find_task, run_task
from dina_lrm.scoring import RewardModel
from tests.evals.voted import voted_folder, voted_model


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return voted_model()


@pytest.fixture(scope="module")
def data(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> PreferenceData:
    return voted_folder(model, tmp_path_factory.mktemp("voted") / "preferences")


def test_built_in_tasks_are_whole_and_their_pairs_are_here() -> None:
    assert available_tasks() == ("emoji", "emoji_unseen_damage", "emoji_unseen_style")
    for name in available_tasks():
        task = find_task(name)
        assert task.name == name and task.split in task.open().splits


def test_a_folder_is_a_task_and_a_file_names_a_folder_beside_it(data: PreferenceData, tmp_path: Path) -> None:
    assert find_task(str(data.folder)).data == str(data.folder)
    (data.folder.parent / "task.yaml").write_text(
        "name: mine\ndata: preferences\nsplit: validation\nrule: {sigmas: [0.1, 0.3], draws: 2, fusion: weighted}\n"
    )
    task = find_task(str(data.folder.parent / "task.yaml"))
    assert task.open().folder == data.folder
    rule = task.rule.build()
    assert (rule.sigmas, rule.draws, rule.fusion) == ((0.1, 0.3), 2, "weighted")


def test_a_card_says_what_was_asked(model: RewardModel, data: PreferenceData) -> None:
    task = find_task(str(data.folder)).model_copy(update={"split": "validation"})
    found = run_task(model, task, "m")
    assert found.model == "m" and found.calibrated_on is None and found.task.rule.sigmas == (0.4,)
    assert found.card.pairs == 144 and 0.5 < found.card.accuracy.value <= 1
    assert found.ties.conventions["ours"].micro == found.card.accuracy
    low, high = found.card.calibration.ece_interval
    assert low <= found.card.calibration.ece <= high and found.card.calibration.ece_floor > 0
    assert BenchmarkCard.model_validate_json(found.model_dump_json()).card.accuracy == found.card.accuracy
    assert run_task(model, task, max_prompts=3).card.prompts == 3


def test_a_calibrated_model_is_judged_by_its_fitted_law(model: RewardModel, data: PreferenceData) -> None:
    task = find_task(str(data.folder)).model_copy(update={"split": "validation"})
    before = run_task(model, task).card
    fitted = calibrate(model, data, CalibrationSettings(sigmas=(0.2, 0.4), draws=2), quiet=True).calibration
    calibrated = voted_model()
    calibrated.config = calibrated.config.model_copy(update={"calibration": fitted})
    calibrated.calibration = fitted.build()
    after = run_task(calibrated, task)
    assert after.calibrated_on == "preferences, validation"
    assert after.card.calibration.nll.value < before.calibration.nll.value
    assert after.card.accuracy == before.accuracy


def test_probabilities_of_joined_tokens_say_that_they_were_fitted_for_means(
    model: RewardModel, data: PreferenceData
) -> None:
    fitted = CalibrationConfig(fitted_on="x, validation")
    task = find_task(str(data.folder)).model_copy(update={"split": "validation"})
    for fusion, says in (
        ("tokens", "x, validation, for means of levels and not for joined tokens"),
        ("mean", "x, validation"),
    ):
        rule = task.rule.model_copy(update={"sigmas": (0.2, 0.4), "fusion": fusion})
        asked = task.model_copy(update={"rule": rule})
        assert run_task(model.with_calibration(fitted), asked, max_prompts=3).calibrated_on == says


def test_tasks_that_cannot_be(data: PreferenceData, model: RewardModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="emoji, emoji_unseen_damage"):
        find_task("imagenet")
    (tmp_path / "task.yaml").write_text("name: x\ndata: y\nrules: {}\n")
    with pytest.raises(ConfigError, match="rules"):
        find_task(str(tmp_path / "task.yaml"))
    with pytest.raises(DataError, match="test"):
        run_task(model, find_task(str(data.folder)))
