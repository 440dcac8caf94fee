import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.checkpoint import describe, load_any, verify
from dina_lrm.errors import CheckpointError
from tests.golden_fixtures import PIPELINE, PUBLISHED

BASE = str(PIPELINE)


@pytest.fixture
def root(tmp_path):
    shutil.copytree(PUBLISHED, tmp_path / "reward")
    return tmp_path / "reward"


def weights(loaded):
    return {**loaded.network.head.state_dict(), **loaded.network.backbone.adapter_state()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_the_root_or_the_checkpoint_folder_may_be_given(root, place):
    assert same(weights(load_any(root / place, base=BASE)), weights(load_any(PUBLISHED, base=BASE)))


def test_the_newest_step_of_a_training_output_is_taken(root):
    for step in ("step_900", "step_01000"):
        shutil.copytree(root / "checkpoint", root / "checkpoints" / step)
    shutil.rmtree(root / "checkpoint")
    (root / "checkpoints" / "step_900" / "rm_head.pt").write_bytes(b"")
    load_any(root, base=BASE)


@pytest.mark.parametrize(
    "dialect",
    [
        lambda n: n.removeprefix("base_model.model.").replace(".weight", ".default.weight"),
        lambda n: n.replace(".weight", ".rm_lora.weight"),
    ],
)
def test_every_dialect_of_adapter_keys_is_read(root, dialect):
    path = root / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    save_file({dialect(name): value for name, value in load_file(path).items()}, path)
    assert same(weights(load_any(root, base=BASE)), weights(load_any(PUBLISHED, base=BASE)))


def test_the_scale_is_that_of_the_adapter_config(root):
    path = root / "checkpoint" / "backbone_lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))
    assert load_any(root, base=BASE).config.backbone.adapter.alpha == 16


def test_scoring_is_that_of_the_release():
    about = describe(PUBLISHED)
    assert about["layout"] == "published"
    assert about["scoring"] == {"snap_to_schedule": True, "add_noise": True}
    assert about["likelihood"] == {"kind": "thurstone", "scale": 2.0, "min_variance": 0.05}


def test_assumed_values_of_the_logistic_output_are_said(root):
    path = root / "config.json"
    config = json.loads(path.read_text())
    config["model"]["use_logistic"] = True
    path.write_text(json.dumps(config))
    loaded = load_any(root, base=BASE)
    assert loaded.network.head.output.width.item() == pytest.approx(0.15)
    assert "eta3" in loaded.config.notes[0] and "eta3" in describe(root)["notes"][0]


def test_a_missing_adapter_is_an_error_and_not_a_warning(root):
    shutil.rmtree(root / "checkpoint" / "backbone_lora")
    with pytest.raises(CheckpointError, match="backbone_lora"):
        load_any(root, base=BASE)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("query_tokens"), "lacks 1 tensors, the first is 'queries'"),
        (lambda s: s.__setitem__("surplus", torch.zeros(1)), "surplus"),
        (lambda s: s.__setitem__("head.bias", torch.tensor([float("nan")])), "not finite"),
    ],
)
def test_wrong_head_tensors_are_refused(root, edit, message):
    path = root / "checkpoint" / "rm_head.pt"
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=message):
        load_any(root, base=BASE)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [pickle.dumps(Payload()), b"", b"\x80\x02garbage"])
def test_a_pickle_with_code_or_garbage_is_refused_unexecuted(root, content, capsys):
    (root / "checkpoint" / "rm_head.pt").write_bytes(content)
    for act in (lambda: load_any(root, base=BASE), lambda: verify(root)):
        with pytest.raises(CheckpointError, match="rm_head.pt"):
            act()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"model_type": "elo"}}'])
def test_configs_that_are_not_theirs_are_refused(root, content):
    (root / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json"):
        load_any(root, base=BASE)


def test_a_whole_checkpoint_verifies():
    verify(PUBLISHED)
