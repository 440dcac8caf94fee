import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dina_lrm.checkpoint import describe, load_any, load_model, save_model, verify, verify_model
from dina_lrm.errors import BaseMismatchError, CheckpointError
from dina_lrm.types import NoisedState
from tests.checkpoint.variants import BASE, TAPS, copy_published, edit_training, full_model, head_only, moved_network
from tests.golden_fixtures import PIPELINE


def utility(loaded, cases, conditioning):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.5))
    with torch.no_grad():
        return loaded.network(state, conditioning)


@pytest.fixture
def merged(golden_model):
    """The golden model's weights with its adapter in them, which is what full fine-tuning would leave."""
    state = golden_model.network.backbone.network_state()
    return {name: value for name, value in state.items() if "lora_" not in name}


@pytest.mark.parametrize("inner", ["", "module."])
def test_a_whole_model_brings_its_own_weights(tmp_path, merged, inner, golden_model, cases, golden_conditioning):
    root = full_model(tmp_path / "full", merged, inner)
    verify(root)
    loaded = load_any(root, base=BASE)
    backbone = loaded.config.backbone
    assert (backbone.weights, backbone.adapter, backbone.image_taps) == ("own", None, TAPS)
    wanted = utility(golden_model, cases, golden_conditioning)
    assert torch.allclose(utility(loaded, cases, golden_conditioning), wanted, atol=1e-5)
    assert describe(root)["tensors"]["full_model.pt"]["count"] == len(merged) + 87


def test_a_head_alone_stands_on_the_bare_base(tmp_path, cases, golden_conditioning, golden_model):
    root = head_only(tmp_path / "head")
    verify(root)
    loaded = load_any(root, base=BASE)
    assert loaded.config.backbone.adapter is None and loaded.config.backbone.weights == "base"
    apart = load_any(copy_published(tmp_path / "lora"), base=BASE, merge_adapter=False).network
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.5))
    with torch.no_grad(), apart.backbone.without_adapter():
        assert torch.equal(utility(loaded, cases, golden_conditioning), apart(state, golden_conditioning))
    assert "is assumed" in describe(root)["notes"][0]


def test_a_loaded_pipeline_keeps_its_weights_under_a_whole_model(tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(BASE)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    loaded = load_any(full_model(tmp_path / "full"), base=pipeline)
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(loaded.network.backbone.network_state()[name], before[name] * 1.01)
    assert all(torch.equal(before[name], value) for name, value in pipeline.transformer.state_dict().items())


def test_parts_that_are_not_kept_are_left_aside(tmp_path, merged):
    whole = load_file(PIPELINE / "transformer" / "diffusion_pytorch_model.safetensors")
    state = whole | merged | {"vae.encoder.conv_in.weight": torch.ones(2), "text_encoder_2.weight": torch.ones(2)}
    loaded = load_any(full_model(tmp_path / "full", state), base=BASE)
    assert loaded.network.backbone.network_state().keys() == merged.keys()
    assert "2 tensors of frozen text encoders and VAE" in loaded.config.notes[0]


def dropped(state):
    return {name: value for name, value in state.items() if name != "context_embedder.weight"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dropped, CheckpointError, "network lacks 1 tensors, the first is 'context_embedder.weight'"),
        (lambda s: s | {"towers.0.weight": torch.ones(2)}, BaseMismatchError, "'towers.0.weight'"),
        (
            lambda s: s | {"context_embedder.weight": torch.ones(64, 50)},
            BaseMismatchError,
            r"is \[64, 50\], but base .*\[64, 48\]",
        ),
        (
            lambda s: {n.replace("transformer_blocks", "layers"): v for n, v in s.items() if "pos_embed" not in n},
            BaseMismatchError,
            "Z-Image",
        ),
        (lambda s: s | {"context_embedder.bias": torch.full((64,), torch.nan)}, CheckpointError, "not finite"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path, change, error, message):
    root = full_model(tmp_path / "full", change(moved_network()))
    with pytest.raises(error, match=message):
        load_any(root, base=BASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"optimizer": torch.ones(1)}, "'optimizer' is neither of the backbone nor of the reward_head"),
        (lambda s: {n: v for n, v in s.items() if n.startswith("backbone")}, "no tensors of the reward_head"),
        (lambda s: {n: v for n, v in s.items() if n.startswith("reward")}, "no tensors of the backbone"),
        (lambda s: {"state_dict": s}, "plain state dict of tensors; 'state_dict' is a "),
        (lambda s: [*s.values()], "must hold a dictionary of tensors, got list"),
    ],
)
def test_whole_models_of_another_form_are_refused(tmp_path, change, message):
    root = full_model(tmp_path / "full")
    path = root / "checkpoint" / "full_model.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    for act in (lambda: load_any(root, base=BASE), lambda: verify(root), lambda: describe(root)):
        with pytest.raises(CheckpointError, match=message):
            act()


def test_a_cut_whole_model_is_named(tmp_path):
    path = full_model(tmp_path / "full") / "checkpoint" / "full_model.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="full_model.pt cannot be read"):
        verify(tmp_path / "full")


@pytest.mark.parametrize(
    ("make", "edit", "message"),
    [
        (copy_published, {"model__use_lora": False}, "neither use_lora nor freeze_backbone.*full_model.pt is missing"),
        (copy_published, {"model__freeze_backbone": True}, "says freeze_backbone.*backbone_lora is there"),
        (head_only, {"model__freeze_backbone": False}, "says use_lora.*backbone_lora is missing"),
        (full_model, {"model__use_lora": True}, "says use_lora.*rm_head.pt is missing and full_model.pt is there"),
    ],
)
def test_configuration_and_files_must_say_the_same(tmp_path, make, edit, message):
    root = make(tmp_path / "model")
    edit_training(root, **edit)
    for act in (lambda: load_any(root, base=BASE), lambda: verify(root)):
        with pytest.raises(CheckpointError, match=message):
            act()


@pytest.mark.parametrize("name", ["rm_head", "full_model"])
def test_mindspores_files_are_refused_with_the_way_out(tmp_path, name):
    root = head_only(tmp_path / "model")
    (root / "checkpoint" / "rm_head.pt").rename(root / "checkpoint" / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match=rf"{name}.ckpt is in MindSpore's own format.*{name}\.pt"):
        load_any(root, base=BASE)


@pytest.fixture
def own(tmp_path):
    """Our folder of a model that brings its own weights."""
    loaded = load_any(full_model(tmp_path / "full"), base=BASE)
    save_model(tmp_path / "own", loaded.network, loaded.config)
    return tmp_path / "own"


def test_our_folder_of_a_whole_model_comes_back(own, cases, golden_conditioning):
    verify_model(own)
    about = describe(own)
    assert set(about["files"]) == {"head.safetensors", "network.safetensors"}
    assert about["tensors"]["network.safetensors"]["dtypes"] == ["float32"]
    assert "probe" not in about["base"]["signature"]
    again = load_model(own, base=BASE)
    published = load_any(own.parent / "full", base=BASE)
    wanted = utility(published, cases, golden_conditioning)
    assert torch.equal(utility(again, cases, golden_conditioning), wanted)


def test_a_damaged_network_file_is_found(own):
    path = own / "network.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="network.safetensors was changed: its sha256"):
        verify_model(own)
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"network.safetensors has \d+ bytes"):
        load_model(own, base=BASE)
    path.unlink()
    with pytest.raises(CheckpointError, match="network.safetensors is missing"):
        load_model(own, base=BASE)


def test_an_adapter_folder_that_states_another_scale_is_a_fault(golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path / "model")
    path, config = tmp_path / "model" / "adapter" / "adapter_config.json", tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    from dina_lrm.runtime.files import sha256_file

    raw = json.loads(config.read_text())
    raw["files"]["adapter/adapter_config.json"]["sha256"] = sha256_file(path)
    config.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lora_alpha 9, config.json says 8"):
        verify_model(tmp_path / "model")


def test_a_folder_of_ours_moves_with_its_base(golden_model, tmp_path):
    config = golden_model.config
    base = config.base.model_copy(update={"name": "pipeline"})
    shutil.copytree(PIPELINE, tmp_path / "model" / "pipeline")
    save_model(tmp_path / "first", golden_model.network, config.model_copy(update={"base": base}))
    for path in (tmp_path / "first").iterdir():
        path.rename(tmp_path / "model" / path.name)
    load_model(tmp_path / "model")
