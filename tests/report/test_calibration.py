"""The reliability diagrams of a calibration are one PNG."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dina_lrm.checkpoint import CalibrationConfig, CalibrationQuality, CalibrationScore
from dina_lrm.errors import InputError
from dina_lrm.evals import AccuracyEstimate, CalibrationCurve, CalibrationReport, ReliabilityBin
from dina_lrm.report import write_reliability

pytest.importorskip("matplotlib")


def report(ways: int) -> CalibrationReport:
    score = CalibrationScore(ece=0.03, ece_low=0.02, ece_high=0.04, brier=0.1, nll=0.5)
    share = AccuracyEstimate(value=0.7, low=0.6, high=0.8, pairs=10, prompts=5)
    bins = tuple(ReliabilityBin(confidence=c, share=share) for c in (0.55, 0.7, 0.9))
    quality = tuple(
        CalibrationQuality(
            label=f"sigma 0.{i}", sigmas=(i / 10,), draws=1, before=score, after=score, ece_floor=0.02, vote_entropy=0.2
        )
        for i in range(ways)
    )
    curves = tuple(CalibrationCurve(label=one.label, before=bins, after=bins) for one in quality)
    return CalibrationReport(model="m", calibration=CalibrationConfig(quality=quality), curves=curves)


@pytest.mark.parametrize("ways", [1, 7])
def test_a_picture_with_a_diagram_a_way(tmp_path: Path, ways: int) -> None:
    write_reliability(report(ways), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG" and (picture.width > picture.height) == (ways > 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_fit_that_was_not_judged_is_drawn_before_only(tmp_path: Path) -> None:
    whole = report(2)
    quality = tuple(one.model_copy(update={"after": None}) for one in whole.calibration.quality)
    curves = tuple(one.model_copy(update={"after": ()}) for one in whole.curves)
    config = whole.calibration.model_copy(update={"quality": quality})
    write_reliability(CalibrationReport(model="m", calibration=config, curves=curves), tmp_path / "x.png")
    assert (tmp_path / "x.png").is_file()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"dina-lrm\[report\]"):
        write_reliability(report(1), tmp_path / "x.png")
