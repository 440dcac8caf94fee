"""Figures: SVG that takes its colours from the page and shares no ids with its neighbours."""

import builtins
import math
import re

import pytest

from dina_lrm.errors import InputError
from dina_lrm.report import figures
from dina_lrm.report.figures import profile_figure, reliability_figure, smooth, spread_labels, training_figure

pytest.importorskip("matplotlib")


def every_figure(results):
    card = results.row("mean").cards["test"].calibration
    return [
        *(training_figure(results.training, what) for what in ("loss", "accuracy", "learning_rate")),
        profile_figure(results.profile, [0.1, 0.4], 940),
        profile_figure(results.profile, [0.1, 0.4], 350),
        reliability_figure(card, "mean"),
    ]


def test_only_colours_of_the_page(results):
    for svg in every_figure(results):
        assert (svg.startswith("<svg class=") and "var(--ink)" in svg) or "var(--muted)" in svg
        assert not re.findall(r"#(?:0{6}|[0-9a-f]{6})\b", svg.replace("#ffffff", ""))


def test_words_are_text_in_the_font_of_the_page(results):
    svg = profile_figure(results.profile, [0.4], 940)
    assert "<text" in svg and "DejaVu" not in svg
    for kind in results.profile.by_kind:
        assert f">{kind}</text>" in svg


def test_ids_are_unique_over_the_page_and_references_find_them(results):
    page = "".join(every_figure(results))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_same_results_draw_the_same_figure(results):
    assert every_figure(results) == every_figure(results)


def test_labels_keep_their_order_distance_and_bounds():
    placed = spread_labels([5.0, 5.1, 0.0, 9.9, 10.0], 1.0, 0.0, 10.0)
    assert placed[0] < placed[1] and placed[3] < placed[4] <= 10.0
    gaps = sorted(placed)
    assert all(b - a >= 1.0 - 1e-9 for a, b in zip(gaps, gaps[1:], strict=False))
    assert placed[2] == 0.0


def test_labels_that_are_far_apart_stay():
    assert spread_labels([1.0, 5.0, 9.0], 1.0, 0.0, 10.0) == [1.0, 5.0, 9.0]


def test_smoothing_leaves_nan_out_and_a_constant_alone():
    assert smooth([2.0] * 9, 5) == [2.0] * 9
    assert smooth([1.0, math.nan, 3.0], 3)[1] == 2.0
    assert math.isnan(smooth([math.nan], 3)[0])


def test_without_matplotlib_the_message_says_what_to_install(results, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"dina-lrm\[report\]"):
        figures.training_figure(results.training, "loss")
