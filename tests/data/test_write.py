from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dina_lrm.data import (
    Candidate,
    LatentParts,
    PreferenceData,
    PreferencePair,
    extend_preference_data,
    write_preference_data,
)
from dina_lrm.data.schema import CANDIDATE_SCHEMA, PAIR_SCHEMA
from dina_lrm.errors import DataError

Pairs = dict[str, list[PreferencePair]]


def test_what_is_written_comes_back(
    tiny: PreferenceData, candidates: list[Candidate], latents: torch.Tensor, pairs: Pairs
) -> None:
    assert tiny.candidates["candidate"].to_pylist() == [c.candidate for c in candidates]
    assert torch.equal(tiny.latents(range(9)), latents)
    for split, written in pairs.items():
        assert tiny.pairs(split).chosen == [p.chosen for p in written]


def test_files_have_the_stated_columns(tiny: PreferenceData) -> None:
    assert pq.read_schema(tiny.folder / "candidates.parquet").equals(CANDIDATE_SCHEMA)
    assert pq.read_schema(tiny.folder / "pairs" / "test.parquet").equals(PAIR_SCHEMA)


def test_writing_twice_gives_the_same_bytes(write: Callable[[], PreferenceData]) -> None:
    assert write().info["sha256"] == write().info["sha256"]


def test_latents_are_stored_in_half_precision(tiny: PreferenceData) -> None:
    assert (tiny.folder / "latents.safetensors").stat().st_size < 9 * 16 * 2 + 200


def test_a_pair_of_an_unknown_candidate_leaves_nothing(
    tmp_path: Path, candidates: list[Candidate], latents: torch.Tensor
) -> None:
    ghost = {"train": [PreferencePair("p", "0-a", "ghost", 1, 0)]}
    with pytest.raises(DataError, match="rejected candidate 'ghost'"):
        write_preference_data(tmp_path / "d", candidates, latents, ghost, "d")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_write_leaves_the_old_folder(
    tiny: PreferenceData, candidates: list[Candidate], latents: torch.Tensor, pairs: Pairs
) -> None:
    latents[0] = torch.inf
    with pytest.raises(DataError, match="not finite"):
        write_preference_data(tiny.folder, candidates, latents, pairs, "tiny")
    PreferenceData.open(tiny.folder).verify()


def test_rows_beyond_the_latents_are_refused(
    tmp_path: Path, candidates: list[Candidate], latents: torch.Tensor, pairs: Pairs
) -> None:
    shifted = [replace(c, latents_row=c.latents_row + 1) for c in candidates]
    with pytest.raises(DataError, match="outside the 9 rows"):
        write_preference_data(tmp_path / "d", shifted, latents, pairs, "d")


def test_new_prompts_for_old_latents_join_what_stands_there(tiny: PreferenceData, pairs: Pairs) -> None:
    more = [Candidate("more-a", "another prompt", 0), Candidate("more-b", "another prompt", 8)]
    fresh = [PreferencePair("another prompt", "more-a", "more-b", 3, 1)]
    kept = {name: sha for name, sha in tiny.info["sha256"].items() if name != "pairs/train.parquet"}
    extended = extend_preference_data(tiny.folder, "more", more, {"train": fresh, "extra": fresh})
    extended.verify()
    assert extended.candidates["candidate"].to_pylist()[-2:] == ["more-a", "more-b"]
    assert extended.pairs("train").chosen == [p.chosen for p in pairs["train"]] + ["more-a"]
    assert extended.pairs("extra").rejected_row.tolist() == [8]
    assert kept.items() <= extended.info["sha256"].items()
    assert extended.dataset_info()["counts"]["candidates"] == 11
    with pytest.raises(DataError, match=r"has a table candidates-more\.parquet"):
        extend_preference_data(tiny.folder, "more", more, {"train": fresh})


def test_a_damaged_folder_is_not_extended(tiny: PreferenceData) -> None:
    path = tiny.folder / "latents.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="changed after it was written"):
        extend_preference_data(tiny.folder, "more", [], {})


def test_an_extension_takes_along_what_is_named_and_nothing_else(tiny: PreferenceData) -> None:
    (tiny.folder / "notes.txt").write_text("stray")
    for name in ("", "a/b"):
        with pytest.raises(DataError, match="letters, digits and underscores"):
            extend_preference_data(tiny.folder, name, [], {})
    aside = tiny.folder.with_name(f".{tiny.folder.name}.replaced")
    tiny.folder.rename(aside)
    extended = extend_preference_data(tiny.folder, "more", [], {})
    assert "notes.txt" not in extended.info["sha256"] and not aside.exists()


def test_an_extension_that_does_not_fit_leaves_the_folder_as_it_was(tiny: PreferenceData) -> None:
    before = tiny.info["sha256"]
    for more in ([Candidate("more-a", "p", 9)], [Candidate("0-a", "p", 0)]):
        with pytest.raises(DataError, match=r"outside the 9 rows|two candidates have one id"):
            extend_preference_data(tiny.folder, "more", more, {})
    after = PreferenceData.open(tiny.folder)
    after.verify()
    assert after.info["sha256"] == before


def test_somebody_elses_files_are_not_lost(tmp_path):
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds notes.txt"):
        write_preference_data(tmp_path, [], torch.zeros(0, 4, 2, 2), {}, "mine")
    assert (tmp_path / "notes.txt").read_text() == "years of work"


def test_latents_may_come_in_parts_and_candidates_one_by_one(tmp_path: Path) -> None:
    whole = torch.randn(5, 2, 3, 3).half().float()
    candidates = (Candidate(f"c{i}", "p", i) for i in range(5))
    parts = LatentParts((5, 2, 3, 3), iter([whole[:2], whole[2:]]))
    data = write_preference_data(
        tmp_path / "d", candidates, parts, {"train": [PreferencePair("p", "c4", "c0", 1, 0)]}, "d"
    )
    assert torch.equal(data.latents([0, 1, 2, 3, 4]), whole)
    assert data.info["counts"]["candidates"] == 5


@pytest.mark.parametrize(
    ("shape", "told"), [((6, 2, 3, 3), "announced"), ((5, 2, 3, 4), "must all be")], ids=["count", "shape"]
)
def test_parts_that_are_not_what_was_announced(tmp_path: Path, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        write_preference_data(tmp_path / "d", [], LatentParts(shape, [torch.zeros(5, 2, 3, 3)]), {}, "d")
    assert not (tmp_path / "d").exists()
