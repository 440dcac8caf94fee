import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from dina_lrm.backbones import AdapterConfig, BackboneConfig, load_backbone
from dina_lrm.errors import (
    BaseMismatchError,
    ConfigError,
    InputError,
    PromptCutWarning,
    ShapeError,
    ValueRangeError,
)
from dina_lrm.noise import RectifiedFlow
from dina_lrm.types import Conditioning, NoisedState
from tests.golden_fixtures import PIPELINE

CONFIG = BackboneConfig(image_taps=(0, 1, 3), text_taps=(2, 4), adapter=None)
BASE = str(PIPELINE)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(CONFIG, BASE)


@pytest.fixture(scope="module")
def whole():
    return SD3Transformer2DModel.from_pretrained(BASE, subfolder="transformer")


def make_inputs(batch=2, height=16, width=24, length=7):
    g = torch.Generator().manual_seed(0)
    state = NoisedState(torch.randn(batch, 16, height, width, generator=g), torch.rand(batch, generator=g))
    return state, Conditioning(torch.randn(batch, length, 48, generator=g), torch.randn(batch, 40, generator=g))


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (8, 4)])
def test_taps_equal_hooks_on_the_whole_network(backbone, whole, size):
    state, conditioning = make_inputs(height=size[0], width=size[1])
    seen = {}
    handles = [
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i + 1, out))
        for i, block in enumerate(whole.transformer_blocks)
    ]
    handles.append(whole.pos_embed.register_forward_hook(lambda m, a, out: seen.__setitem__("pixels", out)))
    handles.append(whole.time_text_embed.register_forward_hook(lambda m, a, out: seen.__setitem__("temb", out)))
    whole(
        hidden_states=state.noised_latents,
        timestep=state.sigma * 1000,
        encoder_hidden_states=conditioning.prompt_embeds,
        pooled_projections=conditioning.pooled_prompt_embeds,
    )
    for handle in handles:
        handle.remove()
    features = backbone.features(state, conditioning)
    expected_image = (seen["pixels"], seen[1][1], seen[3][1])
    expected_text = (seen[2][0], seen[4][0])
    assert all(torch.equal(a, b) for a, b in zip(features.image_tokens, expected_image, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features.text_tokens, expected_text, strict=True))
    assert torch.equal(features.temb, seen["temb"])


def test_only_what_is_tapped_is_kept(backbone, whole):
    names = {name.split(".")[0] for name, _ in backbone.network.named_parameters()}
    assert len(backbone.network.transformer_blocks) == 4
    assert names == {"pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"}
    assert len(whole.transformer_blocks) == 6


def test_gradients_reach_the_noised_latents(backbone):
    state, conditioning = make_inputs()
    latents = state.noised_latents.requires_grad_()
    backbone.features(NoisedState(latents, state.sigma), conditioning).image_tokens[-1].sum().backward()
    assert latents.grad.abs().sum() > 0


def test_alone_or_in_a_batch(backbone):
    state, conditioning = make_inputs(batch=3)
    together = backbone.features(state, conditioning)
    alone = backbone.features(state[1:2], conditioning[1:2])
    assert torch.allclose(together.image_tokens[-1][1:2], alone.image_tokens[-1], rtol=1e-4, atol=1e-4)


def test_no_hook_stays_behind_even_after_a_failure(backbone):
    state, conditioning = make_inputs()
    failing = backbone.network.transformer_blocks[2].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.features(state, conditioning)
    failing.remove()
    assert not any(module._forward_hooks for module in backbone.network.modules())


def test_a_loaded_pipeline_is_left_as_it_was():
    pipeline = StableDiffusion3Pipeline.from_pretrained(BASE)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=2, alpha=4)})
    backbone = load_backbone(config, pipeline)
    backbone.network.train()
    after = pipeline.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert len(pipeline.transformer.transformer_blocks) == 6 and not pipeline.transformer.training
    assert all(p.requires_grad for p in pipeline.transformer.parameters())
    assert backbone.encode_prompts(["a cat"]).prompt_embeds.shape == (1, 205, 48)


def test_a_fresh_adapter_changes_nothing_and_is_all_that_learns():
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=2, alpha=4)})
    adapted, plain = load_backbone(config, BASE), load_backbone(CONFIG, BASE)
    state, conditioning = make_inputs()
    a, b = adapted.features(state, conditioning), plain.features(state, conditioning)
    assert torch.allclose(a.image_tokens[-1], b.image_tokens[-1], atol=1e-6)
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)
    # 12 projections in the three dual blocks, 8 in the fourth; A and B each
    assert len(adapted.adapter_state()) == 2 * (3 * 12 + 8)


def test_adapters_stay_float32_on_a_half_precision_base():
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(rank=2, alpha=4)})
    backbone = load_backbone(config, BASE, dtype=torch.bfloat16)
    assert backbone.dtype == torch.bfloat16
    assert {p.dtype for n, p in backbone.named_parameters() if "lora_" in n} == {torch.float32}
    state, conditioning = make_inputs()
    assert torch.isfinite(backbone.features(state, conditioning).image_tokens[-1]).all()


def test_a_random_twin_has_the_sizes_but_not_the_weights(backbone):
    twin, again = (load_backbone(CONFIG, BASE, random_seed=3) for _ in range(2))
    assert twin.signature()["width"] == backbone.signature()["width"]
    assert twin.signature()["probe"] != backbone.signature()["probe"]
    assert twin.signature() == again.signature()


def test_prompts_and_images_agree_with_the_release(golden_model, cases, case_settings):
    for length in (128, 256):
        conditioning = golden_model.encode_prompts(case_settings["prompts"], length)
        assert torch.allclose(conditioning.prompt_embeds, cases[f"text.{length}.prompt_embeds"], atol=1e-5)
        assert torch.allclose(conditioning.pooled_prompt_embeds, cases[f"text.{length}.pooled"], atol=1e-5)
    latents = golden_model.encode_images((cases["vae.image"] + 1) / 2)
    assert torch.allclose(latents, cases["vae.latents_mode"], atol=1e-5)


@pytest.mark.parametrize("case", [0, 1])
def test_features_agree_with_the_release(golden_model, golden_conditioning, cases, case):
    sigma = torch.full((3,), golden_model._snapped([0.4])[0])
    state = RectifiedFlow().add_noise(cases[f"{case}.latents"], cases[f"{case}.noise"], sigma)
    features = golden_model.features(state, golden_conditioning)
    for i in range(3):
        for ours, theirs in (
            (features.image_tokens[i], cases[f"{case}.visual.{i}.0.4"]),
            (features.text_tokens[i], cases[f"{case}.text.{i}.0.4"]),
        ):
            assert (ours - theirs).norm() / theirs.norm() < 1e-4
    assert torch.allclose(features.temb, cases[f"{case}.temb.0.4"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noised_latents": torch.zeros(2, 4, 16, 16)}, r"\[b 16 h w\].*\[2, 4, 16, 16\]"),
        ({"noised_latents": torch.zeros(2, 16, 15, 16)}, "multiples of 2 up to 48, got 15 x 16"),
        ({"noised_latents": torch.zeros(2, 16, 64, 64)}, "up to 48"),
        ({"prompt_embeds": torch.zeros(2, 7, 32)}, "prompt_embeds must have width 48"),
        ({"pooled_prompt_embeds": torch.zeros(2, 39)}, "pooled_prompt_embeds must have width 40"),
    ],
)
def test_wrong_shapes_are_refused_by_name(backbone, change, message):
    state, conditioning = make_inputs()
    latents = change.pop("noised_latents", state.noised_latents)
    embeds = change.get("prompt_embeds", conditioning.prompt_embeds)
    pooled = change.get("pooled_prompt_embeds", conditioning.pooled_prompt_embeds)
    with pytest.raises(ShapeError, match=message):
        backbone.features(NoisedState(latents, state.sigma), Conditioning(embeds, pooled))


def test_sigma_outside_and_too_few_prompts_are_refused(backbone):
    state, conditioning = make_inputs()
    with pytest.raises(ValueRangeError, match="sigma"):
        backbone.features(NoisedState(state.noised_latents, torch.tensor([0.5, 1.5])), conditioning)
    with pytest.raises(ShapeError, match="2 states need as many prompts, got 1"):
        backbone.features(state, conditioning[:1])


@pytest.mark.parametrize("prompts", [[], "a cat", [None]])
def test_prompts_must_be_a_list_of_strings(backbone, prompts):
    with pytest.raises(ValueRangeError, match="prompts"):
        backbone.encode_prompts(prompts)


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (torch.rand(1, 3, 30, 32), ShapeError),
        (torch.rand(3, 32, 32), ShapeError),
        (torch.rand(1, 3, 32, 32) * 255, ValueRangeError),
        (torch.full((1, 3, 32, 32), float("nan")), ValueRangeError),
    ],
)
def test_bad_pixels_are_refused(backbone, pixels, error):
    with pytest.raises(error):
        backbone.encode_images(pixels)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_taps": (1, 9)}, "reach block 9, but the base has 6"),
        ({"text_taps": (1, 6)}, "last block"),
        ({"kind": "sd9"}, "sd9.*known are"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        load_backbone(CONFIG.model_copy(update=config), BASE)


def test_an_adapter_that_fits_no_layer_is_refused():
    config = CONFIG.model_copy(update={"adapter": AdapterConfig(target_modules=("nothing",))})
    with pytest.raises(ConfigError, match="fit no layer"):
        load_backbone(config, BASE)


def test_no_pipeline_and_a_wrong_pipeline_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no model_index.json"):
        load_backbone(CONFIG, str(tmp_path))
    pipeline = StableDiffusion3Pipeline.from_pretrained(BASE)
    pipeline.register_modules(transformer=pipeline.vae)
    with pytest.raises(BaseMismatchError, match="StableDiffusion3Pipeline"):
        load_backbone(CONFIG, pipeline)


@pytest.mark.parametrize(("length", "room"), [(1, 75), (4, 3)])
def test_a_long_prompt_is_cut_aloud_where_the_encoder_that_reads_furthest_ends(backbone, length, room):
    words = " ".join(f"w{i}" for i in range(200))
    with pytest.warns(PromptCutWarning, match=rf"and {room} are read: cut off was '.*max_sequence_length") as told:
        backbone.encode_prompts([words], length)
    assert len(told) == 1


def test_a_larger_length_is_not_advised_where_clip_alone_reads(backbone, monkeypatch):
    pipeline = backbone._text_pipeline()
    monkeypatch.setattr(pipeline, "text_encoder_3", None)
    monkeypatch.setattr(backbone, "_text_pipeline", lambda: pipeline)
    with pytest.warns(PromptCutWarning, match="and 75 are read: cut off was .*; shorten it$"):
        backbone.encode_prompts([" ".join(f"w{i}" for i in range(200))], 1)


def test_a_prompt_that_fits_is_no_news(backbone):
    backbone.encode_prompts(["a cat"], 128)


def test_a_path_is_a_folder_and_a_network_is_no_pipeline(backbone, whole):
    assert load_backbone(CONFIG, PIPELINE).base == BASE
    with pytest.raises(InputError, match="loaded diffusers pipeline, got SD3Transformer2DModel"):
        load_backbone(CONFIG, whole)
