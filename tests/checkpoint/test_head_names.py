import itertools

import pytest
import torch

from dina_lrm.checkpoint.head_names import TO_OURS, TO_THEIRS, our_name, their_name
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.types import FeatureShape
from tests.checkpoint.variants import PUBLISHED


def test_the_table_has_each_name_once_on_either_side():
    assert len(TO_THEIRS) == len(TO_OURS)


@pytest.mark.parametrize(
    ("bounded", "project_in", "width"), [*itertools.product((False, True), (False, True), (16, 32))]
)
def test_every_name_of_every_head_goes_there_and_back(bounded, project_in, width):
    shape = FeatureShape.uniform(16, 8, 12, 3)
    head = QueryHeadConfig(width=width, num_attention_heads=2, bounded=bounded, project_in=project_in).build(shape)
    ours = list(head.state_dict())
    theirs = [their_name(name) for name in ours]
    assert len(set(theirs)) == len(ours)
    assert [our_name(name) for name in theirs] == ours


def test_the_names_are_those_of_the_release():
    theirs = list(torch.load(PUBLISHED / "checkpoint" / "rm_head.pt", weights_only=True))
    head = QueryHeadConfig(num_attention_heads=8).build(FeatureShape.uniform(64, 64, 3, 3))
    assert {our_name(name) for name in theirs} == set(head.state_dict())
    assert [their_name(our_name(name)) for name in theirs] == theirs


@pytest.mark.parametrize(
    "name", ["surplus", "layer_adapters_visual.0.surplus.weight", "attn3.to_q.weight", "a\nb.weight"]
)
def test_an_unknown_name_stays_as_it_is(name):
    assert our_name(name) == name and their_name(name) == name
