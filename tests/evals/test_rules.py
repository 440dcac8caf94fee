"""Rules of scoring, and the prompts that a control shows."""

import pytest

from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.evals import ScoringRule
from dina_lrm.evals.rules import deranged, shown_prompts


def test_labels():
    assert ScoringRule((0.4,)).label == "sigma 0.4"
    assert ScoringRule((0.2, 0.5), draws=2, fusion="tokens").label == "tokens 0.2, 0.5 × 2 draws"


def test_bad_rules():
    with pytest.raises(ValueRangeError):
        ScoringRule((1.2,))
    with pytest.raises(ValueRangeError):
        ScoringRule((0.4,), draws=0)


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_keeps_its_place(seed):
    words = [f"w{i}" for i in range(7)]
    given = deranged(words, seed)
    assert sorted(given) == words
    assert all(a != b for a, b in zip(words, given, strict=True))
    assert given == deranged(words, seed)


def test_one_prompt_cannot_be_swapped():
    with pytest.raises(DataError, match="two or more"):
        deranged(["alone"], 0)


def test_shown_prompts():
    prompts = ["a", "b", "a", "c"]
    assert shown_prompts(prompts, "own", 0) == {"a": "a", "b": "b", "c": "c"}
    assert shown_prompts(prompts, "blank", 0) == {"a": "", "b": "", "c": ""}
    swapped = shown_prompts(prompts, "swapped", 0)
    assert sorted(swapped) == sorted(swapped.values()) and all(a != b for a, b in swapped.items())
