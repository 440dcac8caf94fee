"""Where a head looks: weights over tokens, and their place in the picture."""

import pytest
import torch
import torch.nn.functional as F

from dina_lrm.backbones import BackboneConfig, load_backbone
from dina_lrm.errors import ConfigError, InputError, ShapeError
from dina_lrm.heads import HeadContexts, MeanPoolHeadConfig, QueryHeadConfig, attention_map
from dina_lrm.heads.query import QueryAttention
from dina_lrm.model import build_network
from dina_lrm.types import Features, FeatureShape, NoisedState
from tests.pipelines import build_pipeline

SHAPE = FeatureShape.uniform(width=32, temb_width=24, num_image_taps=2, num_text_taps=1)
QUERIES = 3
TAPS = {
    "flux": {"image_taps": (1,), "text_taps": (1,)},
    "zimage": {"image_taps": (1,), "text_taps": (1,)},
    "qwen_image": {"image_taps": (1,), "text_taps": (1,)},
    "sdxl": {"image_taps": (1, 2, 4), "text_taps": (0,)},
    "wan": {"image_taps": (1,), "text_taps": (0,)},
}


def random_features(batch=2, image=16, text=5):
    return Features(
        (torch.randn(batch, image, 32), torch.randn(batch, image, 32)),
        (torch.randn(batch, text, 32),),
        torch.randn(batch, 24),
    )


@pytest.fixture
def head():
    return QueryHeadConfig(num_queries=QUERIES).build(SHAPE).eval()


def test_every_query_spends_all_its_attention_on_the_picture(head):
    weights = head.attention(head.contexts(random_features()))
    assert weights.shape == (2, QUERIES, 16)
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, QUERIES), atol=1e-6)


def test_weights_are_those_that_the_values_are_read_with():
    layer = QueryAttention(32, 4, ("image",), gated=True)
    queries, tokens = torch.randn(2, 3, 32), torch.randn(2, 9, 32)
    _, values = layer.readers["image"](tokens)
    read = layer.weights(queries, "image", tokens) @ layer._split(values)
    expected = queries + layer.to_out(read.transpose(1, 2).flatten(2))
    assert torch.allclose(layer(queries, {"image": tokens}, {}), expected, atol=1e-5)


def test_a_head_that_attends_to_one_token_reads_that_token(head):
    with torch.no_grad():  # keys far apart, and queries along the first one's
        head.attend_image.to_k = head.attend_image.readers["image"].to_k
        head.attend_image.readers["image"].to_k.weight.mul_(200)
    contexts = head.contexts(random_features(batch=1))
    seen = int(head.attention(contexts)[0, 0].argmax())
    assert head.attention(contexts)[0, 0, seen] > 0.2
    moved = HeadContexts(contexts.image.roll(3, dims=1), contexts.text)
    assert int(head.attention(moved)[0, 0].argmax()) == (seen + 3) % 16


def test_asking_for_attention_changes_no_score(head):
    contexts = head.contexts(random_features())
    before = head.read(contexts)
    head.attention(contexts)
    assert torch.equal(head.read(contexts), before)


def test_padding_of_the_prompt_changes_no_map(head):
    features = random_features()
    padded = Features(
        features.image_tokens,
        tuple(F.pad(tokens, (0, 0, 0, 4), value=7.0) for tokens in features.text_tokens),
        features.temb,
        torch.arange(9).expand(2, 9) < 5,
    )
    expected = head.attention(head.contexts(features))
    assert torch.allclose(head.attention(head.contexts(padded)), expected, atol=1e-6)


def test_a_head_without_attention_says_so():
    head = MeanPoolHeadConfig().build(SHAPE)
    with pytest.raises(ConfigError, match="MeanPoolHead attends to nothing"):
        head.attention(head.contexts(random_features()))


def test_one_scale_is_laid_out_row_by_row():
    weights = torch.arange(12.0).view(1, 1, 12)
    whole = attention_map(weights, [12, 12], [1, 1], [1, 16, 6, 8])
    assert torch.equal(whole, torch.arange(12.0).view(1, 1, 3, 4))


def test_scales_meet_on_the_finest_grid_and_nothing_is_lost():
    coarse, fine = torch.tensor([0.4, 0.0]), torch.zeros(8)
    fine[7] = 0.6
    whole = attention_map(torch.cat([coarse, fine]).view(1, 1, 10), [8, 2], [2, 4], [1, 4, 4, 8])
    expected = torch.tensor([[0.1, 0.1, 0.0, 0.0], [0.1, 0.1, 0.0, 0.6]])
    assert torch.allclose(whole[0, 0], expected)


@pytest.mark.parametrize(
    ("count", "tokens", "latents", "told"),
    [
        (12, [12], [1, 16, 3, 6, 8], "latents .b c h w."),
        (24, [12], [1, 16, 6, 8], "12 image tokens of one noise level, got 24"),
        (11, [11], [1, 16, 6, 8], "11 image tokens are no grid"),
        (50, [50], [1, 16, 6, 8], "50 image tokens are no grid"),
    ],
)
def test_what_is_no_picture_is_refused(count, tokens, latents, told):
    with pytest.raises(ShapeError, match=told):
        attention_map(torch.ones(1, 1, count), tokens, [1], latents)


def test_the_error_is_the_callers_to_mend():
    assert issubclass(ConfigError, InputError)


def test_a_model_maps_a_state(golden_model, golden_conditioning, cases):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.4))
    with torch.no_grad():
        maps = golden_model.network.attention(state, golden_conditioning)
    height, width = state.noised_latents.shape[-2:]
    assert maps.shape[0] == 3 and maps.shape[-2:] == (height // 2, width // 2)
    assert torch.allclose(maps.sum(dim=(-2, -1)), torch.ones(maps.shape[:2]), atol=1e-5)


def test_alone_or_in_a_batch_the_map_is_the_same(golden_model, golden_conditioning, cases):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.4))
    with torch.no_grad():
        together = golden_model.network.attention(state, golden_conditioning)
        alone = golden_model.network.attention(state[1:2], golden_conditioning[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["flux", "zimage", "qwen_image", "sdxl", "wan"])
def test_each_family_is_mapped_as_its_tokens_lie(kind, tmp_path):
    backbone = load_backbone(BackboneConfig(kind=kind, adapter=None, **TAPS[kind]), str(build_pipeline(kind, tmp_path)))
    network = build_network(backbone, QueryHeadConfig(width=16, num_attention_heads=2, num_queries=2)).eval()
    axes = (3, 8, 12) if kind == "wan" else (8, 12)  # frames first
    state = NoisedState(torch.randn(2, backbone.latent_channels, *axes), torch.full((2,), 0.4))
    conditioning = backbone.encode_prompts(["a red fox", "two owls"])
    with torch.no_grad():
        if kind == "wan":
            with pytest.raises(ShapeError, match="mapped over pictures"):
                network.attention(state, conditioning)
            return
        maps = network.attention(state, conditioning)
    assert maps.shape == (2, 2, 4, 6)  # patches of two, and a UNet that is tapped one level down
    assert torch.allclose(maps.sum(dim=(-2, -1)), torch.ones(2, 2), atol=1e-5)
