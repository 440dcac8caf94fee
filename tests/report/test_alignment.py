"""The page of a run: whatever is in the folder is shown, whatever is not is not missed."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from dina_lrm.errors import DataError
from dina_lrm.report.alignment import draw_run
from dina_lrm.runtime.metrics_log import MetricsLog

WORDS = "a regular pattern has come into the pictures & more"


def with_ends(key: str, value: float, **more: float) -> dict[str, float]:
    ends = {key: value, f"{key}/low": value - 0.1, f"{key}/high": value + 0.1}
    return ends | {f"{key}/{name}": number for name, number in more.items()}


def look(step: int, judged: bool = True) -> dict[str, float | int | str]:
    """A measurement as the monitor tells it; the grid is beyond its limit from update 20 on."""
    rise = step / 40
    row = {"kind": "evaluation", "step": step, "seconds": 2.0 * step}
    row |= (
        with_ends("reward/lrm", rise - 0.9) | with_ends("gain/lrm", rise) | {"grid": 0.1, "norm": 1.0, "distance": 0.0}
    )
    row |= {f"profile_gain/lrm/{sigma}": rise * sigma for sigma in (0.1, 0.4, 0.8)}
    row |= with_ends("monitor/grid", rise, limit=0.3) | with_ends("monitor/range/lrm", rise, limit=0.25)
    row |= {"monitor/signs": float(step >= 20), "monitor/last_good": min(step, 10)}
    if judged:
        row |= with_ends("judge/oracle", 5.7 - rise) | with_ends("gain/oracle", -rise)
        row |= with_ends("monitor/judge/oracle", rise, limit=0.1)
        row |= with_ends("monitor/divergence/lrm/oracle", rise, limit=0.0)
        row |= with_ends("monitor/disagreement/lrm/oracle", math.nan, limit=0.0)
    return row


def run_folder(out: Path, *, looks: bool = True, judged: bool = True, alarms: bool = True, rest: bool = True) -> Path:
    with MetricsLog(out / "metrics.jsonl") as log:
        for step in range(31):
            if step and rest:
                log.write(
                    {"kind": "update", "step": step, "loss": 1 / step, "reward": step / 30, "seconds": 2.0 * step}
                )
            if looks and step % 10 == 0:
                log.write(look(step, judged))
            if alarms and step in (20, 30):
                alarm = {"name": "grid", "value": step / 40, "threshold": 0.3, "words": WORDS}
                log.write({"kind": "alarm", "step": step, **alarm})
    if rest:
        (out / "config.json").write_text(json.dumps({"algorithm": {"kind": "refl"}, "num_updates": 30, "base": "<b>"}))
        (out / "samples").mkdir()
        for step in (0, 10, 20, 30):
            Image.new("RGB", (8, 8)).save(out / "samples" / f"step-{step:06d}.png")
    return out


def drawn(out: Path) -> str:
    page = draw_run(out)
    assert page == out / "index.html"
    return page.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _plots() -> None:
    pytest.importorskip("matplotlib")


def test_a_run_that_was_fooled_says_when_why_and_where_to_go_back(tmp_path) -> None:
    page = drawn(run_folder(tmp_path / "fooled"))
    assert "being fooled</b> since step 20. Last good: <b>step 10</b>" in page
    assert "a regular pattern has come into the pictures &amp; more" in page and "30 updates of 30, refl" in page
    assert page.count('src="samples/step-') == 4 and "step 10, last good" in page and "step 30, now" in page
    assert page.index("last good</figcaption>") < page.index("1 more") < page.index("<figcaption>step 20")
    assert "&lt;b&gt;" in page and '"base": "<b>"' not in page


def test_what_was_measured_is_plotted_once_each(tmp_path) -> None:
    page = drawn(run_folder(tmp_path / "run"))
    titles = re.findall(r"<figcaption>(.*?)</figcaption><svg", page)
    assert titles == [
        "Reward lrm",
        "Judge oracle",
        "Regular pattern in the pictures, in sd",
        "Samples beyond the start’s range of lrm, \u00a0%".replace(" \u00a0", "\u00a0"),
        "Judge oracle below its best, in sd",
        "Judge below its best while the reward rises, in sd: lrm, oracle",
        "Reward lrm",
        "Loss",
        "Reward of the rollouts",
    ]
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "nan" not in page.lower().replace("nano", "")


def test_a_run_without_judges_or_alarms(tmp_path) -> None:
    page = drawn(run_folder(tmp_path / "run", judged=False, alarms=False))
    assert "No alarm in 4 measurements" in page and "Judge" not in page.replace("Judge beyond", "").replace(
        "A judge", ""
    )
    assert "What the monitor found" not in page and "first alarm" not in page


@pytest.mark.parametrize("left", ["looks", "rest"])
def test_a_run_that_has_only_begun(tmp_path, left) -> None:
    page = drawn(run_folder(tmp_path / "run", alarms=False, **{left: False}))
    assert ("Nothing was measured" in page) == (left == "looks")
    assert ("Loss" in page) == (left == "looks")


def test_without_matplotlib_there_is_a_page_all_the_same(tmp_path, monkeypatch) -> None:
    load = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    page = drawn(run_folder(tmp_path / "run"))
    assert "dina-lrm[report]" in page and "<svg" not in page and "Last good: <b>step 10" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="metrics.jsonl"):
        draw_run(tmp_path)
