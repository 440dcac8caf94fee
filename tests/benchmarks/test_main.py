from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(runner, "FOLDER", tmp_path / "benchmarks")


def test_only_modules_with_main_are_benchmarks() -> None:
    (runner.FOLDER / "speed.py").write_text("def main(quick): ...\n")
    (runner.FOLDER / "helper.py").write_text("x = 1\n")
    (runner.FOLDER / "_private.py").write_text("def main(quick): ...\n")
    assert runner.names() == ["speed"]


def test_tables_come_last_and_one_failure_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def speed(quick: bool) -> list[dict[str, object]]:
        print("while it runs")
        return [{"what": "step", "seconds": 0.123456, "quick": quick}, {"what": "other", "ratio": 2}]

    def broken(quick: bool) -> list[dict[str, object]]:
        raise ValueError("no")

    modules = {"benchmarks.broken": SimpleNamespace(main=broken), "benchmarks.speed": SimpleNamespace(main=speed)}
    monkeypatch.setattr(runner.importlib, "import_module", modules.__getitem__)
    assert runner.run(["broken", "speed"], quick=True) == 1
    text = capsys.readouterr()
    assert text.out.index("while it runs") < text.out.index("step   0.1235")
    assert "failed: broken" in text.err
    saved = json.loads((runner.FOLDER / "results" / "speed.quick.json").read_text())
    assert saved["rows"][1] == {"what": "other", "ratio": 2}
    assert {"commit", "date", "hardware", "seconds"} <= set(saved)
    assert saved["hardware"]["threads"] >= 1
