"""A calibration finds the law behind the votes, is judged on other prompts, goes on where it was killed, and refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dina_lrm.checkpoint import LawParametersConfig
from dina_lrm.cli.calibrate import table_lines, verdict_line
from dina_lrm.data import PreferenceData
from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.evals import CalibrationReport, CalibrationSettings, calibrate, check_latent_space, held_out_pairs
from dina_lrm.evals.calibrate import _depends_on
from dina_lrm.preference import TabulatedThurstone
from dina_lrm.preference.fit import HeldOut, LawParameters, fit_law
from dina_lrm.scoring import RewardModel
from tests.evals.elsewhere import answered_elsewhere
from tests.evals.voted import DEVIATION, voted_folder, voted_model

MODULE = sys.modules[calibrate.__module__]  # its name is that of the function, too
SETTINGS = CalibrationSettings(sigmas=(0.2, 0.3, 0.5, 0.7), draws=4)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return voted_model()


@pytest.fixture(scope="module")
def data(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> PreferenceData:
    return voted_folder(model, tmp_path_factory.mktemp("voted") / "preferences")


@pytest.fixture(scope="module")
def report(model: RewardModel, data: PreferenceData) -> CalibrationReport:
    return calibrate(model, data, SETTINGS, "m", quiet=True)


def test_the_law_behind_the_votes_is_found_at_its_level(report: CalibrationReport) -> None:
    level = report.calibration.levels[1]
    assert level.sigma == 0.3 and level.deviation == pytest.approx(DEVIATION, rel=0.25)
    assert level.settled_deviation <= level.deviation
    assert level.margin_variance is not None and level.margin_variance > 0


def test_every_way_of_asking_is_judged_before_and_after(report: CalibrationReport) -> None:
    rows = {row.label: row for row in report.calibration.quality}
    assert list(rows) == [
        "sigma 0.2",
        "sigma 0.3",
        "sigma 0.5",
        "sigma 0.7",
        "mean of 0.2, 0.5, 0.7",
        "mean of all levels",
        "mean of 0.2, 0.5, 0.7, 4 draws",
        "mean of all levels, 4 draws",
    ]
    row = rows["sigma 0.3"]
    assert row.after.nll < row.before.nll and row.after.ece < row.before.ece and row.after.brier < row.before.brier
    assert row.vote_entropy < row.after.nll
    for row in rows.values():
        assert row.before.ece_low <= row.before.ece <= row.before.ece_high
    assert [curve.label for curve in report.curves] == list(rows)
    assert len(report.curves[0].after) == 10


def test_what_was_fitted_is_said_and_can_be_built(report: CalibrationReport, data: PreferenceData) -> None:
    told = report.calibration
    assert (told.fitted_on, told.pairs, told.prompts, told.draws) == ("preferences, validation", 144, 24, 4)
    assert told.parameters is None  # these margins are worth no less under more noise: there is no k
    built = told.build()
    assert built.levels[1].sigma == 0.3 and built.choice is not None
    assert CalibrationReport.model_validate_json(report.model_dump_json()) == report


def test_rewards_of_a_calibrated_model_are_standardised_and_keep_the_order(
    report: CalibrationReport, data: PreferenceData
) -> None:
    fresh = voted_model()
    plain = fresh.score(prompts=["thing 0"], latents=data.latents(range(96)), sigmas=(0.3,), draws=4)
    fresh.calibration = report.calibration.build()
    reward = fresh.score(prompts=["thing 0"], latents=data.latents(range(96)), sigmas=(0.3,), draws=4).reward
    assert torch.equal(reward.argsort(), plain.utility.argsort())
    assert abs(float(reward.mean())) < 1 and 0.3 < float(reward.std()) < 3


def test_killed_work_goes_on(
    model: RewardModel, data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = held_out_pairs(model, data, SETTINGS, quiet=True)
    score, calls = model.score, [0]

    def stopping(**asked: object) -> object:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return score(**asked)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "score", stopping)
    work = tmp_path / ".work"
    with pytest.raises(KeyboardInterrupt):
        held_out_pairs(model, data, SETTINGS, work, quiet=True)
    assert work.is_dir()
    again = held_out_pairs(model, data, SETTINGS, work, quiet=True)
    assert calls[0] == 3
    assert torch.equal(again.utility, whole.utility) and torch.equal(again.target, whole.target)


def test_passes_are_kept_until_the_report_is_saved(
    model: RewardModel, data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / ".work"
    calibrate(model, data, SETTINGS, work=work, quiet=True)
    monkeypatch.setattr(model, "score", None)  # not asked again
    calibrate(model, data, SETTINGS, work=work, quiet=True)


def test_passes_of_other_weights_or_another_precision_are_not_taken_up(data: PreferenceData, tmp_path: Path) -> None:
    """A published model's configuration names no hashes: two of them may differ in nothing but their weights."""
    work, model = tmp_path / ".work", voted_model()
    first = held_out_pairs(model, data, SETTINGS, work, quiet=True)
    assert model.config.files == {}
    with torch.no_grad():
        next(iter(model.network.head.parameters())).mul_(1.5)
    second = held_out_pairs(model, data, SETTINGS, work, quiet=True)
    assert not torch.equal(first.utility, second.utility)
    before = _depends_on(model, data, SETTINGS)
    model.network.backbone.double()
    assert _depends_on(model, data, SETTINGS) != before


def test_no_more_prompts_are_encoded_at_once_than_a_chunk_has(
    model: RewardModel, data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, encode, score = held_out_pairs(model, data, SETTINGS, quiet=True), model.encode_prompts, model.score
    monkeypatch.setattr(MODULE, "_CHUNK", 8)
    seen: list[int] = []

    def encoding(prompts: list[str]) -> object:
        seen[-1] += len(prompts)
        return encode(prompts)

    def scoring(**asked: object) -> object:
        seen.append(0)
        return score(**asked)  # type: ignore[arg-type]

    seen.append(0)
    monkeypatch.setattr(model, "encode_prompts", encoding)
    monkeypatch.setattr(model, "score", scoring)
    found = held_out_pairs(model, data, SETTINGS, quiet=True)
    assert len(seen) == 13 and max(seen) <= 8
    torch.testing.assert_close(found.utility, whole.utility)


def test_a_half_that_bears_no_fit_leaves_the_fit_standing(
    model: RewardModel, data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def second_fails(pairs: HeldOut) -> TabulatedThurstone:
        calls[0] += 1
        if calls[0] == 2:
            raise DataError("all votes follow")
        return fit_law(pairs)

    monkeypatch.setattr(MODULE, "fit_law", second_fails)
    report = calibrate(model, data, SETTINGS, "m", quiet=True)
    told = report.calibration
    assert told.not_judged == "the first half of the prompts (72 pairs) bears no fit of its own: all votes follow"
    assert len(told.levels) == 4 and all(row.after is None and row.before.ece > 0 for row in told.quality)
    assert all(curve.before and not curve.after for curve in report.curves)
    assert CalibrationReport.model_validate_json(report.model_dump_json()) == report
    lines = table_lines(told)
    assert "->" in lines[3] and "not judged after the fit: the first half" in lines[-1]
    assert report.nll_change is None and verdict_line(report).endswith("it was not judged")


@pytest.mark.parametrize(
    ("low", "high", "ece", "told"),
    [
        (-0.2, -0.1, 0.01, "better than the trained law: NLL"),
        (-0.2, 0.1, 0.01, "not distinguishable from the trained law: NLL"),
        (0.1, 0.2, 0.9, "worse than the trained law: NLL"),
        (-0.2, -0.1, 0.9, "better than the trained law by NLL, and not by ECE: NLL"),
    ],
)
def test_one_line_says_whether_the_fit_is_better(
    model: RewardModel, data: PreferenceData, low: float, high: float, ece: float, told: str
) -> None:
    report = calibrate(model, data, SETTINGS, quiet=True)
    rows = report.calibration.quality
    change = [row.after.nll - row.before.nll for row in rows if row.after is not None]
    assert report.nll_change is not None and report.nll_change.value == pytest.approx(sum(change) / len(rows), abs=1e-6)
    judged = tuple(
        row.model_copy(
            update={
                "after": row.before.model_copy(update={"ece": ece}),
                "before": row.before.model_copy(update={"ece": 0.5}),
            }
        )
        for row in rows
    )
    estimate = report.nll_change.model_copy(update={"low": low, "high": high})
    calibration = report.calibration.model_copy(update={"quality": judged})
    line = verdict_line(report.model_copy(update={"calibration": calibration, "nll_change": estimate}))
    assert f"the fit is {told}" in line and "->" in line


def test_k_is_told_where_the_votes_tell_it(
    model: RewardModel, data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "fit_parameters", lambda _: LawParameters(3.0, 0.1, 0.2, 0.01))
    told = calibrate(model, data, CalibrationSettings(sigmas=(0.2, 0.3), draws=1), quiet=True).calibration
    assert told.parameters == LawParametersConfig(scale=3.0, scale_error=0.2, min_variance=0.1, min_variance_error=0.01)
    assert table_lines(told)[1].startswith("k = 3 +- 0.2, clean variance = 0.1 +- 0.01")


def test_one_level_has_no_k(model: RewardModel, data: PreferenceData) -> None:
    assert calibrate(model, data, CalibrationSettings(sigmas=(0.3,)), quiet=True).calibration.parameters is None


def test_parts_of_another_device_go_with_those_on_disk(
    model: RewardModel, data: PreferenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = held_out_pairs(model, data, SETTINGS, quiet=True)
    monkeypatch.setattr(model, "score", answered_elsewhere(model.score))
    found = held_out_pairs(model, data, SETTINGS, quiet=True)
    assert type(found.utility) is torch.Tensor and torch.equal(found.utility, whole.utility)


def test_latents_of_another_space_are_refused_and_both_are_named(model: RewardModel, data: PreferenceData) -> None:
    check_latent_space(data, model.network.backbone)
    info = {**data.info, "backbone": {"class": "Other", "latent_shape": [16, 4, 4]}}
    with pytest.raises(DataError, match=r"Other with latent channels 16.*FakeBackbone 'fake' with 4"):
        calibrate(model, PreferenceData(data.folder, info), SETTINGS, quiet=True)


@pytest.mark.parametrize("name", ["vae_scaling_factor", "scaling_factor"])
def test_latents_scaled_otherwise_are_refused(
    model: RewardModel, data: PreferenceData, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    backbone = model.network.backbone
    monkeypatch.setattr(backbone, "signature", lambda: {"class": "FakeBackbone", "vae_scaling_factor": 1.5})
    for scale, fits in ((1.5, True), (0.36, False)):
        there = PreferenceData(data.folder, {**data.info, "backbone": {"latent_shape": [4, 4, 4], name: scale}})
        if fits:
            check_latent_space(there, backbone)
        else:
            with pytest.raises(DataError, match=r"0\.36.*1\.5"):
                check_latent_space(there, backbone)


def test_too_few_pairs(model: RewardModel, data: PreferenceData) -> None:
    with pytest.raises(DataError, match="50 pairs"):
        calibrate(model, data, CalibrationSettings(sigmas=(0.3,), draws=1, max_prompts=5), quiet=True)


def test_settings_that_cannot_be() -> None:
    for wrong in ({"sigmas": (0.5, 0.2)}, {"sigmas": ()}, {"sigmas": (0.5, 1.2)}, {"draws": 0}):
        with pytest.raises(ValueRangeError):
            CalibrationSettings(**wrong)  # type: ignore[arg-type]
