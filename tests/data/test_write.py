from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dina_lrm.data import Candidate, PreferenceData, PreferencePair, write_preference_data
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
