"""Wrong bases and places that give none: told clearly, before weights are read."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.checkpoint import BaseReference, describe, load_any, stored
from dina_lrm.checkpoint.stored import named_base
from dina_lrm.errors import BaseMismatchError, CheckpointError, ConfigError, InputError
from tests.checkpoint.variants import (
    BASE,
    changed_base,
    copy_published,
    edit_head,
    edit_json,
    edit_training,
    full_model,
    head_only,
)
from tests.golden_fixtures import PIPELINE, PUBLISHED
from tests.pipelines import build_pipeline


@pytest.fixture
def never_loaded(monkeypatch):
    """The base's weights are out of bounds."""

    def refuse(*args, **kwargs):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(stored, "load_backbone", refuse)


@pytest.fixture(params=["published", "ours"])
def model(request, tmp_path, golden_model):
    if request.param == "published":
        return PUBLISHED
    golden_model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"scaling_factor": 0.18215}, "vae_scaling_factor 1.5305, but the base given has 0.18215"),
        ({"shift_factor": 0.0}, "vae_shift_factor 0.0609, but the base given has 0.0"),
        ({"shift_factor": None}, "vae_shift_factor 0.0609, but the base given has None"),
        ({"latents_mean": [0.0] * 16}, "vae_latents_mean None, but"),
    ],
)
def test_another_scale_of_latents_is_another_base(model, tmp_path, updates, message):
    with pytest.raises(BaseMismatchError, match=message):
        load_any(model, base=changed_base(tmp_path / "base", "vae", **updates))


def test_another_count_of_latent_channels_is_another_base(model, tmp_path):
    base = changed_base(tmp_path / "base", "transformer", in_channels=4, out_channels=4)
    path = tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["pos_embed.proj.weight"] = weights["pos_embed.proj.weight"][:, :4].contiguous()
    save_file(weights, path)
    with pytest.raises(BaseMismatchError, match="latent_channels 16, but the base given has 4"):
        load_any(model, base=base)


def test_a_pipeline_without_a_vae_is_no_other_base(model):
    from diffusers import DiffusionPipeline

    load_any(model, base=DiffusionPipeline.from_pretrained(BASE, vae=None))


@pytest.mark.usefixtures("never_loaded")
def test_a_wider_base_is_told_by_what_the_head_reads(model, tmp_path):
    base = changed_base(tmp_path / "base", "transformer", num_attention_heads=16, caption_projection_dim=128)
    with pytest.raises(BaseMismatchError, match="head reads image tokens of width 64, but base .* gives 128"):
        load_any(model, base=base)


@pytest.mark.usefixtures("never_loaded")
def test_a_head_on_another_time_embedding_is_told(tmp_path):
    def narrower(state):
        return {n: v[:, :16].clone() if ".cond_mlp.0.weight" in n else v for n, v in state.items()}

    root = head_only(tmp_path / "head")
    edit_head(root, narrower)
    with pytest.raises(BaseMismatchError, match="a time embedding of width 16, but base .* gives 64"):
        load_any(root, base=BASE)


@pytest.mark.usefixtures("never_loaded")
def test_a_shallower_base_is_told_by_the_taps(model, tmp_path):
    base = changed_base(tmp_path / "base", "transformer", num_layers=3)
    with pytest.raises(ConfigError, match="taps reach block 4, but the base has 3"):
        load_any(model, base=base)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("kind", ["flux", "sdxl"])
def test_a_pipeline_of_another_class(model, tmp_path, kind):
    base = str(build_pipeline(kind, tmp_path / "base"))
    with pytest.raises(BaseMismatchError, match=r"Flux|FLUX|StableDiffusionXL|Stable Diffusion XL"):
        load_any(model, base=base)


def test_a_loaded_pipeline_of_another_class(model, tmp_path):
    from diffusers import DiffusionPipeline

    base = DiffusionPipeline.from_pretrained(build_pipeline("sdxl", tmp_path / "base"))
    with pytest.raises(BaseMismatchError, match="needs a StableDiffusion3Pipeline|Stable Diffusion XL"):
        load_any(model, base=base)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nobody/such-model", "is not in the hub's cache, and the hub cannot be reached"),
        ("/nowhere/at/all", "no folder here"),
        (str(PIPELINE / "vae"), "model_index.json"),
    ],
)
def test_a_base_that_is_not_to_be_had(model, base, message):
    with pytest.raises(InputError, match=message):
        load_any(model, base=base)


def test_a_base_whose_weights_are_missing(model, tmp_path):
    shutil.copytree(PIPELINE, tmp_path / "base")
    (tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="is the download complete"):
        load_any(model, base=str(tmp_path / "base"))


def test_the_named_base_is_taken_and_beside_the_model_first(tmp_path):
    root = copy_published(tmp_path / "reward")
    with pytest.raises(InputError, match="'tiny'"):
        load_any(root)
    shutil.copytree(PIPELINE, root / "tiny")
    load_any(root)
    shutil.rmtree(root / "tiny")
    edit_training(root, model__backbone_model_id=BASE)
    load_any(root)


def test_a_path_may_be_a_path():
    load_any(PUBLISHED, base=PIPELINE)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("make", [copy_published, head_only, full_model])
def test_damaged_files_are_told_before_the_base_is_asked_for(tmp_path, make):
    root = make(tmp_path / "model")
    path = next((root / "checkpoint").glob("*.pt"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=path.name):
        load_any(root, base="nobody/such-model")


# Hub ids.


def response(status, code):
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub"), headers={"X-Error-Code": code})


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (lambda e: e.GatedRepoError("403", response=response(403, "GatedRepo")), "'a/b' is gated: accept its terms"),
        (lambda e: e.RevisionNotFoundError("404", response=response(404, "")), "'a/b' has no revision 'v9'"),
        (lambda e: e.RepositoryNotFoundError("404", response=response(404, "")), "no repository on the hub"),
        (lambda e: e.LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (lambda e: OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_a_hub_id_that_gives_nothing_says_why(monkeypatch, raised, message):
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*args, **kwargs):
        raise raised(errors)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message):
        load_any("a/b", revision="v9")


@pytest.mark.parametrize(("path", "message"), [("a b/c", "no hub id"), ("owner/name", "cannot be reached")])
def test_a_path_that_is_nothing(path, message):
    with pytest.raises(CheckpointError, match=message):
        describe(path)


def test_a_file_is_no_folder():
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        describe(PUBLISHED / "config.json")


def test_a_hub_id_is_the_folder_that_it_downloads_to(monkeypatch):
    import huggingface_hub

    asked = {}

    def give(name, revision=None):
        asked.update(name=name, revision=revision)
        return str(PUBLISHED)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    load_any("owner/name", base=BASE, revision="v1")
    assert asked == {"name": "owner/name", "revision": "v1"}


def test_the_kind_is_that_of_the_base_whatever_the_name_says(tmp_path):
    root = copy_published(tmp_path / "reward")
    edit_training(root, model__backbone_model_id="someone/a-flux-lover")
    assert load_any(root, base=BASE).config.backbone.kind == "sd3"
    with pytest.raises(BaseMismatchError, match="is of FLUX, but the checkpoint has layers such as"):
        describe(root)


def test_a_second_half_of_the_head_of_another_width(tmp_path):
    root = head_only(tmp_path / "head")
    edit_head(root, lambda state: state | {"agg_text.weight": torch.ones(64, 64)})
    with pytest.raises(CheckpointError, match=r"'merge_text.0.weight' must be \[64, 48\], got \[64, 64\]"):
        load_any(root, base=BASE)


def test_a_changed_index_is_told(tmp_path):
    shutil.copytree(PIPELINE, tmp_path / "base")
    edit_json(tmp_path / "base" / "model_index.json", _class_name="PixArtAlphaPipeline", transformer=["diffusers", "X"])
    with pytest.raises(BaseMismatchError, match="PixArtAlphaPipeline, which no backbone reads"):
        load_any(PUBLISHED, base=str(tmp_path / "base"))


def test_a_hub_id_may_bring_its_revision(tmp_path):
    reference = BaseReference(name="theirs", revision="old")
    assert named_base(tmp_path, reference, "owner/name@v2") == ("owner/name", "v2")
    assert named_base(tmp_path, reference, "owner/name") == ("owner/name", None)
    (tmp_path / "a@b").mkdir()
    assert named_base(tmp_path, reference, tmp_path / "a@b") == (str(tmp_path / "a@b"), None)
    assert named_base(tmp_path, reference, None) == ("theirs", "old")
