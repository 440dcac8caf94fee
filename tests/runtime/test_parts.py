from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dina_lrm.errors import DataError
from dina_lrm.runtime.parts import Parts


def test_what_was_kept_is_found_by_the_next_run(tmp_path: Path) -> None:
    Parts.open(tmp_path / "p", {"seed": 1}).put(3, {"x": torch.arange(4)})
    again = Parts.open(tmp_path / "p", {"seed": 1})
    found = again.get(3)
    assert found is not None and torch.equal(found["x"], torch.arange(4))
    assert 3 in again and 2 not in again and again.get(2) is None


def test_parts_of_other_work_are_thrown_away(tmp_path: Path) -> None:
    Parts.open(tmp_path / "p", {"seed": 1}).put(0, {"x": torch.ones(1)})
    assert Parts.open(tmp_path / "p", {"seed": 2}).get(0) is None


def test_a_part_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path / "p", {})
    parts.put(0, {"x": torch.ones(100)})
    path = next((tmp_path / "p").glob("part-*"))
    path.write_bytes(path.read_bytes()[:50])
    assert parts.get(0) is None


def test_a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match="other things"):
        Parts.open(tmp_path, {})
    assert (tmp_path / "thesis.txt").exists()


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    parts = Parts.open(tmp_path / "p", {})
    parts.put(0, {"x": torch.ones(1)})
    parts.remove()
    assert not (tmp_path / "p").exists()
