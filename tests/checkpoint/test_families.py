import pytest
from diffusers import DiffusionPipeline

from dina_lrm.backbones.registry import available_backbones, backbone_class
from dina_lrm.checkpoint.families import (
    CALLED,
    NETWORKS,
    PIPELINES,
    check_layers,
    kind_of_base,
    kind_of_checkpoint,
    kind_of_name,
    kinds_of_layers,
    untold,
)
from dina_lrm.errors import BaseMismatchError, InputError
from tests.checkpoint.variants import BASE, edit_json


def test_the_tables_say_what_the_backbones_say():
    ours = {kind: backbone_class(kind) for kind in available_backbones()}
    assert {cls.pipeline_class.__name__: kind for kind, cls in ours.items()} == PIPELINES
    networks = [cls.network_class.__name__ for cls in ours.values()]
    alone = {
        cls.network_class.__name__: k for k, cls in ours.items() if networks.count(cls.network_class.__name__) == 1
    }
    assert alone == NETWORKS
    assert CALLED.keys() == ours.keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stabilityai/stable-diffusion-3.5-medium", "sd3"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "sd3"),
        ("black-forest-labs/FLUX.1-dev", "flux"),
        ("Tongyi-MAI/Z-Image-Turbo", "zimage"),
        ("Qwen/Qwen-Image", "qwen_image"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan"),
        ("/models/flux/stable-diffusion-3.5-medium/", "sd3"),
        ("black-forest-labs/FLUX.2-dev", None),
        ("tiny", None),
    ],
)
def test_a_name_speaks_of_its_family(name, kind):
    assert kind_of_name(name) == kind


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        (["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn2.to_q"], ("sd3",)),
        (["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q"], ("flux",)),
        (["transformer_blocks.0.attn.to_q"], ("flux", "qwen_image", "sd3")),
        (["layers.0.attention.to_q"], ("zimage",)),
        (["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"], ("sd15", "sdxl")),
        (["blocks.0.attn1.to_q"], ("wan",)),
        (["elsewhere"], ()),
        ([], ()),
    ],
)
def test_layers_tell_their_networks(layers, kinds):
    assert kinds_of_layers(layers) == kinds


def test_a_base_is_told_by_its_pipeline(tmp_path):
    assert kind_of_base(BASE) == "sd3"
    assert kind_of_base(DiffusionPipeline.from_pretrained(BASE)) == "sd3"


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        (
            {"_class_name": "StableDiffusion3InpaintPipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]},
            "sd3",
        ),
        ({"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "sdxl"),
    ],
)
def test_a_base_is_told_by_model_index(tmp_path, index, kind):
    (tmp_path / "model_index.json").write_text("{}")
    edit_json(tmp_path / "model_index.json", **index)
    assert kind_of_base(str(tmp_path)) == kind


def test_bases_that_no_backbone_reads(tmp_path):
    with pytest.raises(InputError, match="no model_index.json"):
        kind_of_base(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    with pytest.raises(BaseMismatchError, match="is a PixArtAlphaPipeline, which no backbone reads"):
        kind_of_base(str(tmp_path))
    with pytest.raises(BaseMismatchError, match="is a object, which"):
        kind_of_base(object())


def test_a_checkpoint_is_told_by_its_name_then_by_its_layers():
    dual = ["transformer_blocks.0.attn2.to_q"]
    assert kind_of_checkpoint("black-forest-labs/FLUX.1-dev", []) == "flux"
    assert kind_of_checkpoint("tiny", dual) == "sd3"
    assert kind_of_checkpoint("tiny", []) is None
    with pytest.raises(BaseMismatchError, match="is of FLUX, but the checkpoint has layers such as .*attn2"):
        kind_of_checkpoint("black-forest-labs/FLUX.1-dev", dual)
    with pytest.raises(BaseMismatchError, match="base 'x' is of Z-Image"):
        check_layers("zimage", dual, "base 'x'")


def test_what_is_not_told_says_what_was_tried():
    assert "'tiny', which is no folder here" in str(untold("tiny", []))
    assert "no layers that would tell" in str(untold("tiny", []))
    assert "FLUX or Qwen-Image or Stable Diffusion 3 alike" in str(untold("tiny", ["transformer_blocks.0.attn.to_q"]))
