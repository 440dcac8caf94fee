"""What callers do with a pipeline that they share: threads, quantised weights, adapters of other kinds, missing parts."""

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusion3Pipeline
from peft import LoraConfig
from torch import nn

from dina_lrm.backbones import BackboneConfig, load_backbone
from dina_lrm.errors import BaseMismatchError, InputError
from dina_lrm.types import Conditioning, NoisedState
from tests.golden_fixtures import PIPELINE
from tests.pipelines import build_pipeline

CONFIG = BackboneConfig(image_taps=(1, 2), text_taps=(1, 2), adapter=None)


@pytest.fixture
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(PIPELINE)


def make_inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    state = NoisedState(torch.randn(1, 16, 16, 16, generator=g), torch.rand(1, generator=g))
    return state, Conditioning(torch.randn(1, 7, 48, generator=g), torch.randn(1, 40, generator=g))


def test_threads_read_one_backbone_and_keep_their_features_apart():
    backbone = load_backbone(CONFIG, str(PIPELINE))
    inputs = [make_inputs(seed) for seed in range(16)]
    alone = [backbone.features(*one).image_tokens[-1] for one in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: backbone.features(*one).image_tokens[-1], inputs * 3))
    assert all(torch.equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def test_quantised_weights_are_refused_and_not_taken_for_numbers(pipeline):
    layer = pipeline.transformer.transformer_blocks[0].attn.to_q
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(BaseMismatchError, match="quantised"):
        load_backbone(CONFIG, pipeline)


def test_adapters_on_text_encoders_are_not_seen(pipeline):
    before = load_backbone(CONFIG, pipeline).encode_prompts(["a cat"])
    encoder = pipeline.text_encoder
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "style")
    after = load_backbone(CONFIG, pipeline).encode_prompts(["a cat"])
    assert torch.equal(before.prompt_embeds, after.prompt_embeds)


def test_a_scheduler_of_the_caller_stays_as_it_is(tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(build_pipeline("sd15", tmp_path / "base"))
    pipeline.scheduler = DDIMScheduler(steps_offset=0, clip_sample=True)
    before = dict(pipeline.scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library's own word on such a scheduler
        load_backbone(BackboneConfig(kind="sd15", adapter=None), pipeline).encode_prompts(["a cat"])
    assert dict(pipeline.scheduler.config) == before


def test_a_pipeline_without_parts_says_what_to_give_instead(pipeline):
    bare = StableDiffusion3Pipeline(
        **{**pipeline.components, "vae": None, "text_encoder": None, "text_encoder_2": None, "text_encoder_3": None}
    )
    backbone = load_backbone(CONFIG, bare)
    with pytest.raises(InputError, match="no VAE; give latents"):
        backbone.encode_images(torch.rand(1, 3, 64, 64))
    with pytest.raises(InputError, match="no text_encoder; give conditioning"):
        backbone.encode_prompts(["a cat"])


def test_latents_are_float32_whatever_the_vae_is(pipeline):
    shared = load_backbone(CONFIG, pipeline.to(torch.bfloat16), dtype=torch.bfloat16)
    assert shared.encode_images(torch.rand(1, 3, 64, 64)).dtype == torch.float32


def test_memory_is_counted_after_compiling():
    backbone = load_backbone(CONFIG, str(PIPELINE))
    plain = backbone.activation_bytes((16, 16, 16), 7)
    again = load_backbone(CONFIG, str(PIPELINE))
    again.compile_blocks(backend="eager")
    assert again.activation_bytes((16, 16, 16), 7) == plain


def test_a_base_in_halves_only_gives_its_encoders_too(tmp_path):
    base = tmp_path / "base"
    StableDiffusion3Pipeline.from_pretrained(PIPELINE).save_pretrained(base, variant="fp16")
    backbone = load_backbone(CONFIG, base)
    assert backbone.encode_prompts(["a cat"]).prompt_embeds.shape == (1, 205, 48)
    assert backbone.encode_images(torch.rand(1, 3, 64, 64)).shape == (1, 16, 8, 8)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_a_base_without_a_vocabulary_does_not_score_nonsense(tmp_path, name):
    base = shutil.copytree(PIPELINE, tmp_path / "base")
    shutil.rmtree(base / name)
    with pytest.raises(InputError, match=f"lacks {name}/"):
        load_backbone(CONFIG, base).encode_prompts(["a cat"])


def test_a_pipeline_loaded_without_t5_is_no_base_for_prompts():
    bare = StableDiffusion3Pipeline.from_pretrained(PIPELINE, text_encoder_3=None, tokenizer_3=None)
    backbone = load_backbone(CONFIG, bare)
    with pytest.raises(InputError, match="without T5"):
        backbone.encode_prompts(["a cat"])
    state, conditioning = make_inputs()
    assert torch.isfinite(backbone.features(state, conditioning).temb).all()


@pytest.mark.parametrize(("kind", "given"), [("sdxl", "sd15"), ("sd15", "sdxl")])
def test_one_unet_is_not_taken_for_another(tmp_path, kind, given):
    with pytest.raises(BaseMismatchError, match=f"its kind may be {given}"):
        load_backbone(BackboneConfig(kind=kind, adapter=None), build_pipeline(given, tmp_path / "base"))


def test_each_kind_has_its_own_length_whatever_its_taps():
    assert BackboneConfig(kind="wan", image_taps=(2,), text_taps=(0,)).max_sequence_length == 512
    assert BackboneConfig(kind="flux", image_taps=(2,), text_taps=(2,)).max_sequence_length == 128
    assert BackboneConfig(kind="wan", max_sequence_length=64).max_sequence_length == 64
