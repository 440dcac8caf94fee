"""Rankings and their words."""

import math

import pytest

from dina_lrm.demo.measure import _best_of, _some, origin_words


def origin(kind, detail):
    return {"kind": kind, "concept": "ram", "style": "noto", "detail": detail}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (origin("generator", "20 steps, guidance 2.5"), "drawn, 20 steps"),
        (origin("generator", ""), "drawn"),
        (origin("damaged", "blur 0.45"), "blur 0.45"),
        (origin("real", "right"), "real"),
        (origin("real", "style"), "real: noto"),
        (origin("real", "near"), "real: ram"),
        (origin("upload", None), "upload"),
        (None, ""),
    ],
)
def test_where_a_candidate_came_from(given, said):
    assert origin_words(given) == said


def rows(*truth):
    return [{"oracle_utility": value} for value in truth]


def test_a_perfect_choice_captures_all_and_a_blind_one_nothing():
    assert _best_of("p", [rows(3.0, 2.0, 1.0)] * 3).captured == 1.0
    assert _best_of("p", [rows(2.0, 3.0, 1.0)] * 3).captured == 0.0


def test_prompts_with_fewer_candidates_are_left_out():
    found = _best_of("p", [rows(3.0, 1.0), rows(2.0), rows(5.0, 1.0)])
    assert (found.n, found.prompts, found.best.value, found.worst.value) == (2, 2, 4.0, 1.0)


def test_no_oracle_or_no_choice_says_nothing():
    assert _best_of("p", [rows(None, 1.0)]) is None
    assert _best_of("p", [rows(1.0)]) is None
    assert _best_of("p", []) is None
    assert math.isnan(_best_of("p", [rows(1.0, 1.0)]).captured)


def test_some_are_taken_in_their_order():
    ranked = list(range(20))
    assert _some(ranked, 8, 0) == sorted(_some(ranked, 8, 0))
    assert len(_some(ranked, 8, 0)) == 8 and _some(ranked, 8, 0) != _some(ranked, 8, 1)
    assert _some(ranked[:3], 8, 0) == [0, 1, 2]
