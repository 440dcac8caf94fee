"""The shipped preferences of the emoji world: whole, and with splits that keep their promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dina_lrm.data import Origin, PairTable, PreferenceData

FOLDER = Path(__file__).parents[2] / "worlds" / "emoji" / "preferences"
SPLITS = ("train", "validation", "test", "unseen_style", "unseen_damage")
IN_DOMAIN = ("train", "validation", "test")


@pytest.fixture(scope="module")
def data() -> PreferenceData:
    return PreferenceData.open(FOLDER)


@pytest.fixture(scope="module")
def tables(data: PreferenceData) -> dict[str, PairTable]:
    return {split: data.pairs(split) for split in SPLITS}


def origins(table: PairTable) -> list[Origin]:
    return [origin for origin in (*table.chosen_origin, *table.rejected_origin) if origin is not None]


def damages(table: PairTable) -> set[str]:
    return {origin.detail.split()[0] for origin in origins(table) if origin.kind == "damaged"}


def test_the_folder_is_whole(data: PreferenceData) -> None:
    data.verify()
    assert data.splits == SPLITS
    assert data.info["backbone"]["latent_shape"] == [16, 8, 8]


def test_every_candidate_has_truth_origin_and_preview(data: PreferenceData) -> None:
    for column in ("oracle_utility", "origin"):
        assert data.candidates[column].null_count == 0
    previews = dict(
        zip(data.candidates["candidate"].to_pylist(), data.candidates["preview"].is_null().to_pylist(), strict=True)
    )
    # Prompts that were asked later show pictures that have a preview already.
    assert all(missing == name.startswith("reasked-") for name, missing in previews.items())
    assert data.preview(data.candidates["candidate"][0].as_py()).size == (64, 64)


def test_latents_are_standardised(data: PreferenceData) -> None:
    rows = data.latents(np.unique(data.candidates["latents_row"].to_numpy()))
    assert abs(rows.mean().item()) < 0.2
    assert 0.8 < rows.std().item() < 1.2


def test_splits_share_no_concept_and_no_prompt(tables: dict[str, PairTable]) -> None:
    concepts = {split: {origin.concept for origin in origins(tables[split])} for split in IN_DOMAIN}
    prompts = {split: set(tables[split].prompt) for split in IN_DOMAIN}
    for seen in (concepts, prompts):
        assert not seen["train"] & seen["validation"]
        assert not seen["train"] & seen["test"]
        assert not seen["validation"] & seen["test"]


def test_the_unseen_style_is_in_no_other_split(data: PreferenceData, tables: dict[str, PairTable]) -> None:
    unseen = data.info["about"]["unseen_style"]
    for split in (*IN_DOMAIN, "unseen_damage"):
        assert unseen not in {origin.style for origin in origins(tables[split])}
        assert not any(unseen in prompt for prompt in tables[split].prompt)
    assert all(unseen in prompt for prompt in tables["unseen_style"].prompt)


def test_unseen_damages_are_in_no_other_split(data: PreferenceData, tables: dict[str, PairTable]) -> None:
    unseen = set(data.info["about"]["unseen_damages"])
    assert damages(tables["unseen_damage"]) == unseen
    for split in (*IN_DOMAIN, "unseen_style"):
        assert not damages(tables[split]) & unseen


def test_nine_vote_on_each_pair_and_truth_leads_most_votes(tables: dict[str, PairTable]) -> None:
    for table in tables.values():
        assert set(table.votes_chosen + table.votes_rejected + table.votes_tied) == {9}
        decided = table.votes_chosen != table.votes_rejected
        ceiling = (table.chosen_utility > table.rejected_utility)[decided].mean()
        assert 0.85 < ceiling < 0.99


def test_every_kind_of_pair_is_there(tables: dict[str, PairTable]) -> None:
    for split in (*IN_DOMAIN, "unseen_style"):
        assert set(tables[split].kind) == {"concept", "style", "damage", "generator", "mixed"}
