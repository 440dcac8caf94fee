import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.backbones import load_backbone
from dina_lrm.checkpoint import describe, load_model, save_model, verify, verify_model
from dina_lrm.errors import BaseMismatchError, CheckpointError
from dina_lrm.model import build_network
from dina_lrm.types import NoisedState
from tests.golden_fixtures import PIPELINE

BASE = str(PIPELINE)


@pytest.fixture
def folder(golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, **updates):
    config = json.loads((folder / "config.json").read_text())
    config.update(updates)
    (folder / "config.json").write_text(json.dumps(config))


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    loaded = load_model(folder, base=BASE)
    save_model(tmp_path / "again", loaded.network, loaded.config)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


def test_a_whole_folder_verifies_and_describes_itself(folder):
    verify_model(folder)
    about = describe(folder)
    assert about["layout"] == "dina_lrm"
    assert about["backbone"]["image_taps"] == [1, 2, 4]
    assert about["head_parameters"] > 1000
    assert about["files"]["head.safetensors"]["bytes"] == (folder / "head.safetensors").stat().st_size


def test_the_adapter_is_an_ordinary_peft_adapter(folder):
    from diffusers import SD3Transformer2DModel
    from peft import PeftModel

    transformer = SD3Transformer2DModel.from_pretrained(BASE, subfolder="transformer")
    adapted = PeftModel.from_pretrained(transformer, folder / "adapter")
    ours = load_file(folder / "adapter" / "adapter_model.safetensors")
    theirs = {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if "lora_" in n}
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


@pytest.mark.parametrize("name", ["head.safetensors", "adapter/adapter_model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    for act in (lambda: load_model(folder, base=BASE), lambda: verify(folder)):
        with pytest.raises(CheckpointError, match=name.split("/")[-1]):
            act()


def test_a_truncated_file_is_named(folder):
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"head.safetensors has \d+ bytes"):
        load_model(folder, base=BASE)


def test_a_changed_byte_is_found_by_verify(folder):
    path = folder / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="sha256"):
        verify_model(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("queries"), "lacks 1 tensors, the first is 'queries'"),
        (lambda t: t.__setitem__("surplus", torch.zeros(1)), "fit nowhere.*surplus"),
        (
            lambda t: t.__setitem__("queries", torch.zeros(1, 3, 64)),
            r"'queries' must be \[1, 4, 64\], got \[1, 3, 64\]",
        ),
        (lambda t: t["queries"].fill_(float("nan")), "'queries' has values that are not finite"),
    ],
)
def test_wrong_tensors_are_refused_by_name(folder, edit, message):
    tensors = load_file(folder / "head.safetensors")
    edit(tensors)
    save_file(tensors, folder / "head.safetensors")
    files = json.loads((folder / "config.json").read_text())["files"]
    files["head.safetensors"]["bytes"] = (folder / "head.safetensors").stat().st_size
    change(folder, files=files)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, base=BASE)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"surplus": 1}, "surplus"),
        ({"head": {"kind": "query", "num_queries": 0}}, "num_queries"),
    ],
)
def test_configs_from_elsewhere_are_refused(folder, updates, message):
    change(folder, **updates)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, base=BASE)


def test_not_json_and_not_a_folder_are_refused(folder, tmp_path):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_model(folder, base=BASE)
    with pytest.raises(CheckpointError, match="no config.json"):
        load_model(tmp_path, base=BASE)


def test_another_base_is_refused(folder, golden_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    twin = load_backbone(golden_model.config.backbone, BASE, random_seed=1)
    path = other / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["pos_embed.proj.weight"] = twin.network.pos_embed.proj.weight.detach()
    save_file(weights, path)
    with pytest.raises(BaseMismatchError, match="probe"):
        load_model(folder, base=str(other))


def test_a_control_with_a_random_base_comes_back(golden_model, golden_conditioning, cases, tmp_path):
    backbone = load_backbone(golden_model.config.backbone, BASE, random_seed=5)
    network = build_network(backbone, golden_model.config.head)
    base = golden_model.config.base.model_copy(update={"name": BASE, "random_seed": 5})
    save_model(tmp_path / "model", network, golden_model.config.model_copy(update={"base": base}))
    again = load_model(tmp_path / "model")
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.5))
    with torch.no_grad():
        assert torch.equal(again.network(state, golden_conditioning), network(state, golden_conditioning))


def test_a_half_precision_base_is_still_the_base(folder):
    load_model(folder, base=BASE, dtype=torch.bfloat16)


def test_nothing_is_left_of_a_save_that_fails(golden_model, tmp_path):
    queries = golden_model.network.head.queries.data
    kept = queries.clone()
    queries.fill_(float("inf"))
    try:
        with pytest.raises(CheckpointError, match="not finite"):
            golden_model.save_pretrained(tmp_path / "model")
    finally:
        queries.copy_(kept)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_names_no_files_is_no_whole_model(folder):
    change(folder, files={})
    for act in (lambda: load_model(folder, base=BASE), lambda: verify(folder)):
        with pytest.raises(CheckpointError, match="must name the files"):
            act()


def test_somebody_elses_files_are_not_lost(golden_model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds thesis.txt, which is no part of a model"):
        golden_model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
