"""The page: self-contained, whole, and in step with results.json."""

import re
from html.parser import HTMLParser

import pytest

from dina_lrm.errors import ValueRangeError
from dina_lrm.report import DemoResults, write_report
from dina_lrm.report.page import render

pytest.importorskip("matplotlib")

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_and_results_are_written(results, pictures, tmp_path):
    page = write_report(results, pictures, tmp_path / "new" / "folder")
    assert page.name == "report.html"
    assert DemoResults.model_validate_json((page.parent / "results.json").read_text()) == results


def test_nothing_is_fetched(results, pictures):
    html = render(results, pictures)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.findall(r"url\((?!#)", html)
    assert "<script" not in html and "@import" not in html


def test_tags_are_balanced(results, pictures):
    parser = Balance()
    parser.feed(render(results, pictures))
    assert parser.open == []


def test_every_row_split_and_section_is_there(results, pictures):
    html = render(results, pictures)
    for row in results.table:
        assert row.label in html
    for facts in results.splits.values():
        assert facts.label in html
    for title in ("draws", "Training", "Held-out", "sigma sees", "honest", "Best of 8", "Use the model", "Time"):
        assert re.search(f"<h2>[^<]*{title}", html)
    assert html.count("<svg") == 6
    assert "84.1" in html and "82.9 – 85.3" in html
    assert results.commands[0].split(" --prompt")[0] in html


def test_a_fast_run_says_so(results, pictures):
    assert "Fast run" not in render(results, pictures)
    assert "Fast run" in render(results.model_copy(update={"fast": True}), pictures)


def test_words_from_outside_are_escaped(results, pictures):
    sample = results.samples[0].model_copy(update={"prompt": "<b>&cat"})
    html = render(results.model_copy(update={"samples": (sample,)}), pictures)
    assert "&lt;b&gt;&amp;cat" in html and "<b>&cat" not in html


def test_without_rankings_or_oracle(results, pictures):
    html = render(results.model_copy(update={"rankings": (), "best_of": ()}), pictures)
    assert "Use the model" in html


def test_a_missing_picture_is_named(results):
    with pytest.raises(ValueRangeError, match="picture-0"):
        render(results, {})
