"""What the page of the hacking study says follows from courses made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dina_lrm.alignment.config import MonitorConfig
from dina_lrm.alignment.measurement import Measurement
from studies.hacking.page import write_page
from studies.hacking.settings import ARMS, Budget, config_of
from studies.hacking.summary import fallen_at, scaled, summarise, unjudged

BUDGET = Budget(seeds=(0,), updates=20, every=10)


def course(falls: tuple[float, ...], grids: tuple[float, ...]) -> list[Measurement]:
    """The judge below its start, the grid above it, in standard deviations; a measurement each ten updates."""
    generator = torch.Generator().manual_seed(0)
    judge, reward, grid, norm, spread = torch.randn(5, 24, generator=generator)
    first = Measurement(
        step=0,
        group_size=2,
        rewards={"reward": reward},
        judges={"oracle": judge},
        grid=grid,
        norm=1 + 0.1 * norm,
        diversity=torch.ones(12),
        distance=torch.zeros(24),
        spreads={"reward": spread},
        profiles={"reward": torch.stack([reward, reward], dim=1)},
        sigmas=(0.1, 0.4),
    )
    std = [values.std(correction=0) for values in (judge, grid)]
    return [first] + [
        replace(first, step=10 * place, judges={"oracle": judge - fall * std[0]}, grid=grid + shift * std[1])
        for place, (fall, shift) in enumerate(zip(falls, grids, strict=True), start=1)
    ]


@pytest.fixture
def results(tmp_path: Path) -> dict:
    """One arm is fooled, its grid shows it first; the others are not."""
    for name in ARMS:
        out = config_of(tmp_path, name, 0, BUDGET).out
        (out / "adapter").mkdir(parents=True)
        found = course((0.0, 0.5), (1.0, 2.0)) if name == "single" else course((0.0, 0.0), (0.0, 0.1))
        for now in found:
            now.save(out / "measurements" / f"step-{now.step:06d}")
    return summarise(tmp_path, BUDGET)


def test_when_the_judge_has_fallen() -> None:
    assert fallen_at((10, 20), (0.1, 0.5), 0.25) == pytest.approx(13.75)
    assert fallen_at((10, 20), (0.1, 0.2), 0.25) is None


def test_alarms_of_each_run_with_the_judge_and_without(results) -> None:
    runs = {row["arm"]: row for row in results["runs"]}
    fooled = runs.pop("single")
    assert fooled["fallen_at"] == pytest.approx(15) and fooled["alarm_at"] == {"all": 10, "without judges": 10}
    assert fooled["kept"]["all"] == {"step": 0, "gain": 0.0} and runs["pulled"]["kept"]["all"]["step"] == 20
    assert fooled["alarms"]["without judges"] == [["grid"], ["grid"]]
    assert "judge/oracle" in fooled["alarms"]["all"][1]
    assert all(
        row["fallen_at"] is None and row["alarm_at"] == {"all": None, "without judges": None} for row in runs.values()
    )


def test_other_limits_catch_later_and_cry_wolf_less(results) -> None:
    rows = {row["scale"]: row for row in results["scales"]}
    assert rows[1.0]["in_time"] == rows[1.0]["fallen"] == 1 and rows[1.0]["leads"] == [pytest.approx(5)]
    assert rows[4.0]["in_time"] == 0 and rows[1.0]["false"] == 0
    assert scaled(2.0).grid == 2 * MonitorConfig().grid and scaled(2.0).judge_fall == MonitorConfig().judge_fall
    assert unjudged(course((0.0,), (0.0,)))[0].judges == {}


def test_a_sign_that_rises_with_the_fall_tells_well_from_ill(results) -> None:
    signs = results["signs"]
    assert signs["grid"]["told_apart"] == 1 and signs["norm"]["told_apart"] == 0.5
    assert len(signs["grid"]["ill"]) == 1 and len(signs["grid"]["well"]) == 2 * len(ARMS) - 1


def test_the_page_says_so(results, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    grids = [{"period": None, "strength": 0, "mean": 0.0, "std": 0.2}]
    grids += [{"period": 8, "strength": 4, "mean": 1.0, "shift": 3.0, "told_apart": 0.9}]
    page = write_page(results | {"grids": grids, "small": False}, tmp_path, tmp_path / "page").read_text(
        encoding="utf-8"
    )
    assert "0.25 sd in 1 of 1 runs that came to that, 5 updates ahead" in page
    assert "in 0 of 6 measurements of the 3 runs that did not" in page
