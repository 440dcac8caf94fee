from __future__ import annotations

import json
from pathlib import Path

from dina_lrm.runtime.metrics_log import MetricsLog, read_metrics


def test_each_row_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write({"step": 1, "loss": 0.5})
        assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"step": 1, "loss": float("nan"), "norm": float("inf"), "kind": "train"})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None, "kind": "train"}


def test_a_resumed_run_drops_later_rows_and_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricsLog(path, step=3) as log:
        log.write({"step": 4})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_a_fresh_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path).close()
    assert read_metrics(path) == []


def test_no_log_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
