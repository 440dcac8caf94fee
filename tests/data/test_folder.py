from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.data import PreferenceData, vote_share
from dina_lrm.errors import DataError, ImageError, ValueRangeError
from dina_lrm.runtime.files import sha256_file


def edit_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "dataset.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def rehash(folder: Path, name: str) -> None:
    """Make the hash fit, so that the fault behind it is found."""
    edit_info(folder, lambda info: info["sha256"].update({name: sha256_file(folder / name)}))


def edit_column(folder: Path, name: str, column: str, values: list[Any]) -> None:
    table = pq.read_table(folder / name)
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, folder / name)
    rehash(folder, name)


def test_target_is_the_share_of_decided_votes(tiny: PreferenceData) -> None:
    table = tiny.pairs("train")
    assert table.target.tolist() == [1.0, 0.75, 0.5, 0.625, 0.5]
    assert table.votes_tied.tolist() == [0, 1, 9, 1, 1]


def test_shares_of_the_two_sides_add_up_to_one() -> None:
    a, b = np.array([0, 9, 0, 4], np.int32), np.array([0, 0, 9, 2], np.int32)
    assert np.array_equal(vote_share(a, b) + vote_share(b, a), np.ones(4))


def test_pairs_find_the_latents_of_their_candidates(tiny: PreferenceData) -> None:
    table = tiny.pairs("train")
    assert tiny.latents(table.chosen_row)[:, 0, 0, 0].tolist() == [0, 2, 4, 5, 4]
    assert tiny.latents(table.rejected_row)[:, 0, 0, 0].tolist() == [1, 1, 3, 3, 5]


def test_latents_come_as_float32_in_the_order_asked(tiny: PreferenceData) -> None:
    latents = tiny.latents([5, 0, 5])
    assert latents.dtype == torch.float32
    assert latents.shape == (3, 4, 2, 2)
    assert latents[:, 0, 0, 0].tolist() == [5, 0, 5]


def test_indexing_a_table_keeps_its_columns_together(tiny: PreferenceData) -> None:
    table = tiny.pairs("train")
    part = table[[3, 0]]
    assert len(part) == 2
    assert part.prompt == [table.prompt[3], table.prompt[0]]
    assert part.chosen_row.tolist() == [5, 0]
    assert part.rejected_origin[1] is not None
    assert part.rejected_origin[1].detail == "blur 0.5"
    assert np.isnan(part.chosen_utility[0])
    assert part.chosen_utility[1] == 1.0


def test_missing_origin_and_preview_stay_missing(tiny: PreferenceData) -> None:
    assert tiny.pairs("train").chosen_origin[1] is None
    assert tiny.preview("0-a").size == (8, 8)
    with pytest.raises(DataError, match="no preview"):
        tiny.preview("0-c")


def test_torn_preview_is_an_image_error(tiny: PreferenceData) -> None:
    with pytest.raises(ImageError, match="'0-b' cannot be read"):
        tiny.preview("0-b")


def test_info_tells_splits_and_counts(tiny: PreferenceData) -> None:
    info = tiny.dataset_info()
    assert tiny.splits == ("train", "test")
    assert info["counts"] == {"candidates": 9, "latents": 9, "pairs": {"train": 5, "test": 1}}
    assert info["backbone"] == {"latent_shape": [4, 2, 2], "model": "none"}
    assert set(info["sha256"]) == {
        "candidates.parquet",
        "latents.safetensors",
        "pairs/train.parquet",
        "pairs/test.parquet",
    }


def test_a_whole_folder_verifies(tiny: PreferenceData) -> None:
    tiny.verify()


@pytest.mark.parametrize("row", [-1, 9])
def test_rows_that_do_not_exist_are_refused(tiny: PreferenceData, row: int) -> None:
    with pytest.raises(ValueRangeError, match=rf"row {row} of .* from 0 to 8"):
        tiny.latents([0, row])


def test_unknown_split_names_the_known(tiny: PreferenceData) -> None:
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        tiny.pairs("dev")


def test_unknown_candidate_is_refused(tiny: PreferenceData) -> None:
    with pytest.raises(DataError, match="'nobody'"):
        tiny.preview("nobody")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no preference folder"):
        PreferenceData.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null"])
def test_info_that_cannot_be_read(tiny: PreferenceData, text: str) -> None:
    (tiny.folder / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        PreferenceData.open(tiny.folder)


def test_another_schema_version(tiny: PreferenceData) -> None:
    edit_info(tiny.folder, lambda info: info.update(schema_version=7))
    with pytest.raises(DataError, match="schema_version 7, this program reads 1"):
        PreferenceData.open(tiny.folder)


@pytest.mark.parametrize("entry", ["counts", "sha256"])
def test_info_without_an_entry(tiny: PreferenceData, entry: str) -> None:
    edit_info(tiny.folder, lambda info: info.pop(entry))
    with pytest.raises(DataError, match=f"lacks {entry}"):
        PreferenceData.open(tiny.folder)


@pytest.mark.parametrize("name", ["candidates.parquet", "latents.safetensors", "pairs/train.parquet"])
def test_a_missing_file_is_named(tiny: PreferenceData, name: str) -> None:
    (tiny.folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        PreferenceData.open(tiny.folder)


@pytest.mark.parametrize("name", ["candidates.parquet", "latents.safetensors", "pairs/train.parquet"])
def test_truncated_files_are_refused_at_use_and_by_verify(tiny: PreferenceData, name: str) -> None:
    path = tiny.folder / name
    path.write_bytes(path.read_bytes()[:-40])
    data = PreferenceData.open(tiny.folder)
    with pytest.raises(DataError, match=f"{name} has sha256"):
        data.verify()
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        data.latents(data.pairs("train").chosen_row)


def test_a_changed_byte_is_found(tiny: PreferenceData) -> None:
    path = tiny.folder / "latents.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="changed after it was written"):
        PreferenceData.open(tiny.folder).verify()


def test_latents_that_are_not_finite(tiny: PreferenceData) -> None:
    path = tiny.folder / "latents.safetensors"
    latents = load_file(path)["latents"].clone()
    latents[4, 0, 0, 0] = torch.nan
    save_file({"latents": latents}, path)
    rehash(tiny.folder, "latents.safetensors")
    with pytest.raises(DataError, match="row 4 has a value that is not finite"):
        PreferenceData.open(tiny.folder).verify()


@pytest.mark.parametrize(
    "tensors",
    [{"other": torch.zeros(9, 4, 2, 2)}, {"latents": torch.zeros(9, 4)}, {"latents": torch.zeros(9, 4, 2, 2).long()}],
)
def test_latents_of_the_wrong_kind(tiny: PreferenceData, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tiny.folder / "latents.safetensors")
    with pytest.raises(DataError, match="latents"):
        PreferenceData.open(tiny.folder).latents([0])


@pytest.mark.parametrize(
    ("name", "column", "values", "fault"),
    [
        (
            "candidates.parquet",
            "latents_row",
            [0, 1, 2, 3, 4, 5, 6, 7, 9],
            r"latents_row \[9\] lies outside the 9 rows",
        ),
        ("candidates.parquet", "candidate", ["0-a", "0-b", "0-c", "1-a", "1-b", "1-c", "2-a", "2-b", "2-b"], "one id"),
        ("candidates.parquet", "oracle_utility", [float("nan")] * 9, "oracle_utility is not finite"),
        ("candidates.parquet", "prompt", ["another"] * 9, "across prompts"),
        ("pairs/train.parquet", "chosen", ["0-a", "x", "1-b", "1-c", "1-b"], "'x', asked for by train"),
        ("pairs/train.parquet", "chosen", ["0-b", "0-c", "1-b", "1-c", "1-b"], "'0-b' with itself"),
        ("pairs/train.parquet", "votes_tied", [0, -1, 9, 1, 1], "negative"),
        ("pairs/train.parquet", "votes_tied", [0, 1, 0, 1, 1], "nobody voted"),
        ("pairs/train.parquet", "votes_rejected", [0, 7, 0, 3, 4], "chosen by fewer"),
    ],
)
def test_verify_finds_what_no_hash_shows(
    tiny: PreferenceData, name: str, column: str, values: list[Any], fault: str
) -> None:
    edit_column(tiny.folder, name, column, values)
    with pytest.raises(DataError, match=fault):
        PreferenceData.open(tiny.folder).verify()


def test_counts_must_fit(tiny: PreferenceData) -> None:
    edit_info(tiny.folder, lambda info: info["counts"]["pairs"].update(train=6))
    with pytest.raises(DataError, match=r"5 pairs in train, but dataset\.json says 6"):
        PreferenceData.open(tiny.folder).verify()


def test_latent_shape_must_fit(tiny: PreferenceData) -> None:
    edit_info(tiny.folder, lambda info: info["backbone"].update(latent_shape=[16, 8, 8]))
    with pytest.raises(DataError, match=r"latents are \[4, 2, 2\]"):
        PreferenceData.open(tiny.folder).verify()


def test_a_column_of_another_type(tiny: PreferenceData) -> None:
    path = tiny.folder / "pairs" / "train.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["kind"]), path)
    with pytest.raises(DataError, match=r"column 'kind' .* found none"):
        tiny.pairs("train")


def test_a_column_with_holes(tiny: PreferenceData) -> None:
    path = tiny.folder / "pairs" / "train.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("chosen")
    pq.write_table(table.set_column(place, "chosen", pa.array([None] * 5, pa.string())), path)
    with pytest.raises(DataError, match="must be filled, found 5 nulls"):
        tiny.pairs("train")
