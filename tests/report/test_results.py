"""The record of a demo survives JSON."""

import math

import pytest

from dina_lrm.report import DemoResults


def test_there_and_back(results):
    assert DemoResults.model_validate_json(results.model_dump_json()) == results


def test_nan_is_null(results, tmp_path):
    facts = results.encoding.model_copy(update={"reconstruction_psnr": math.nan})
    path = tmp_path / "results.json"
    results.model_copy(update={"encoding": facts}).save(path)
    assert '"reconstruction_psnr": null' in path.read_text()
    assert math.isnan(DemoResults.model_validate_json(path.read_text()).encoding.reconstruction_psnr)


def test_rows_are_found_by_name(results):
    assert results.row("random").group == "control"
    with pytest.raises(StopIteration):
        results.row("no such row")
