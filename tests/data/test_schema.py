from __future__ import annotations

from dina_lrm.data import Origin


def test_an_origin_survives_its_row() -> None:
    origin = Origin("generator", "red apple", "noto", "8 steps, guidance 2.5, seed 1")
    assert Origin.from_row(origin.to_row()) == origin


def test_nothing_known_stays_nothing() -> None:
    assert Origin.from_row(None) is None
    assert Origin.from_row({"kind": "upload", "concept": None, "style": None, "detail": None}) == Origin("upload")
