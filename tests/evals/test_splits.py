"""A split read for scoring."""

import pytest

from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.evals import SplitView


def test_every_candidate_once_and_every_pair(folder):
    view = SplitView.of(folder, "test")
    assert len(view.candidates) == len(set(view.candidates)) == 24
    assert len(view.target) == len(view.kinds) == 36
    assert view.kind_names == ["concept", "style"]


def test_places_lead_back_to_ids_rows_and_truth(folder):
    view, table = SplitView.of(folder, "test"), folder.pairs("test")
    assert [view.candidates[i] for i in view.chosen] == table.chosen
    assert [view.candidates[i] for i in view.rejected] == table.rejected
    assert view.rows[view.chosen].tolist() == table.chosen_row.tolist()
    assert view.oracle[view.rejected].tolist() == table.rejected_utility.tolist()
    assert [view.prompts[i] for i in view.prompt_of_pair] == table.prompt


def test_the_first_prompts(folder):
    view = SplitView.of(folder, "test", max_prompts=2)
    assert view.prompts == ("thing 0", "thing 1")
    assert (len(view.candidates), len(view.target)) == (8, 12)


def test_bad_input(folder):
    with pytest.raises(ValueRangeError, match="max_prompts"):
        SplitView.of(folder, "test", max_prompts=0)
    with pytest.raises(DataError, match="no pairs"):
        SplitView.of(folder, "empty")
