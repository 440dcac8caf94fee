"""What every head must do; a new head joins the list."""

import pytest
import torch

from dina_lrm.errors import ConfigError
from dina_lrm.heads import HeadContexts, MeanPoolHeadConfig, QueryHeadConfig
from dina_lrm.types import Features, FeatureShape

SHAPE = FeatureShape.uniform(width=32, temb_width=24, num_image_taps=3, num_text_taps=2)
HEADS = [
    QueryHeadConfig(),
    QueryHeadConfig(width=16, num_attention_heads=4, num_queries=2),
    QueryHeadConfig(project_in=True, bounded=True),
    MeanPoolHeadConfig(),
    MeanPoolHeadConfig(width=8),
]


def make_features(batch=4, image=9, text=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Features(
        tuple(torch.randn(batch, image, 32, generator=g) for _ in range(3)),
        tuple(torch.randn(batch, text, 32, generator=g) for _ in range(2)),
        torch.randn(batch, 24, generator=g),
    )


def make_head(config):
    torch.manual_seed(0)
    head = config.build(SHAPE).eval()
    with torch.no_grad():
        for parameter in head.parameters():  # zero-initialised gates and modulations would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


@pytest.fixture(params=HEADS, ids=repr)
def head(request):
    return make_head(request.param)


def test_one_utility_a_sample(head):
    assert head(make_features()).shape == (4,)


def test_alone_or_in_a_batch(head):
    features = make_features()
    together = head(features)
    alone = torch.cat([head(features[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_every_tap_stream_and_the_time_embedding_matter(head):
    features = make_features()
    leaves = features.map(lambda t: t.requires_grad_())
    head(leaves).sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in (*leaves.image_tokens, *leaves.text_tokens, leaves.temb))


def test_every_parameter_learns(head):
    head.train()
    head(make_features()).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_order_of_tokens_does_not_matter(head):
    features = make_features()
    shuffled = Features(
        tuple(t.flip(1) for t in features.image_tokens), tuple(t.flip(1) for t in features.text_tokens), features.temb
    )
    assert torch.allclose(head(features), head(shuffled), atol=1e-5)


def test_joining_a_level_with_itself_changes_nothing(head):
    contexts = head.contexts(make_features())
    assert torch.allclose(head.read(HeadContexts.join([contexts, contexts])), head.read(contexts), atol=1e-5)


def test_joined_levels_are_not_the_mean_of_readings_for_attention():
    head = make_head(QueryHeadConfig())
    a, b = head.contexts(make_features(seed=1)), head.contexts(make_features(seed=2))
    joined = head.read(HeadContexts.join([a, b]))
    assert not torch.allclose(joined, (head.read(a) + head.read(b)) / 2, atol=1e-3)


def test_a_bounded_head_stays_inside_two():
    head = make_head(QueryHeadConfig(bounded=True))
    assert head(make_features()).abs().max() <= 2


def test_a_fresh_query_head_gates_every_token_by_half():
    head = QueryHeadConfig().build(SHAPE)
    gate = head.attend_both.readers["image"].gate
    assert torch.allclose(torch.sigmoid(gate(torch.randn(2, 3, 32))), torch.full((2, 3, 1), 0.5))


@pytest.mark.parametrize("config", [QueryHeadConfig(width=30), QueryHeadConfig(num_attention_heads=5)])
def test_widths_that_do_not_divide_are_refused(config):
    with pytest.raises(ConfigError, match="multiple of 4"):
        config.build(SHAPE)
