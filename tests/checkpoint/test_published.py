import hashlib
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.checkpoint import describe, load_any, verify
from dina_lrm.errors import CheckpointError
from tests.checkpoint.variants import BASE, edit_head, edit_training, in_bfloat16
from tests.golden_fixtures import PUBLISHED


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


def test_a_pickle_with_code_is_refused_by_the_name_of_the_code(root, capsys):
    path = root / "checkpoint" / "rm_head.pt"
    state = torch.load(path, weights_only=True)
    for content in (pickle.dumps(Payload()), state | {"query_tokens": Payload()}):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(
            CheckpointError, match=r"it holds code \((builtins.)?print\), which is not executed"
        ) as told:
            load_any(root, base=BASE)
        assert "weights_only" not in str(told.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [pickle.dumps(Payload()), b"", b"abc", b"\x80\x02garbage", b"PK\x03\x04"])
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


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"model__visual_head_idx": [1, 2]}, "reads 2 image taps, but head .* has layers for 3"),
        ({"model__text_head_idx": [0, 1, 2, 4]}, "reads 4 text taps, but head .* has layers for 3"),
        ({"model__num_transformer_layers": 3}, "taps reach block 4, but num_transformer_layers keeps 3"),
        ({"model__reward_head__num_queries": 5}, r"'queries' must be \[1, 5, 64\], got \[1, 4, 64\]"),
        ({"model__reward_head__use_proj_in": True}, "project_in"),
        ({"model__reward_head__out_dim": 2}, "out_dim must be 1"),
        ({"model__visual_head_idx": [2, 1, 4]}, "taps must be rising"),
        ({"model__visual_head_idx": "all"}, "no DiNa-LRM training config"),
    ],
)
def test_a_configuration_that_does_not_fit_its_files_is_refused(root, updates, message):
    edit_training(root, **updates)
    for act in (lambda: load_any(root, base=BASE), lambda: verify(root), lambda: describe(root)):
        with pytest.raises(CheckpointError, match=message):
            act()


def test_additions_of_the_authors_forks_are_accepted(root):
    edit_training(
        root,
        model__max_sequence_length=256,
        model__reward_checkpoint="x",
        training__max_steps=5,
        logging={"wandb_mode": "offline", "validation_u": [0.3]},
    )
    assert load_any(root, base=BASE).config.backbone.max_sequence_length == 256


@pytest.mark.parametrize(
    ("law", "likelihood"),
    [
        ("thurstone-constant", {"kind": "thurstone", "scale": 0.0, "min_variance": 0.5}),
        ("bt", {"kind": "bradley_terry", "margin": 0.0}),
        ("bt-margin", {"kind": "bradley_terry", "margin": 1.0}),
    ],
)
def test_every_law_of_theirs_has_a_name_of_ours(root, law, likelihood):
    edit_training(root, model__model_type=law)
    assert describe(root)["likelihood"] == likelihood


def test_an_older_head_is_refused_by_name(root):
    edit_head(root, lambda s: {n.replace("norm_q", "norm1").replace("norm_v", "norm2"): v for n, v in s.items()})
    with pytest.raises(CheckpointError, match="older head .RewardHeadV3, by 'attn1.norm1.weight'.*one softmax"):
        load_any(root, base=BASE)


def steps(root, *names):
    for name in names:
        shutil.copytree(root / "checkpoint", root / "checkpoints" / name)
    shutil.rmtree(root / "checkpoint")


@pytest.mark.parametrize(
    ("names", "newest", "left_out"),
    [
        (["step_900", "step_01000"], "step_01000", ["step_900"]),
        (["epoch_000", "epoch_002", "epoch_010"], "epoch_010", ["epoch_002", "epoch_000"]),
        (["epoch_000", "step_02000"], "step_02000", ["epoch_000"]),
        (["step_00001", "notes"], "step_00001", []),
    ],
)
def test_the_newest_checkpoint_is_read_and_told(root, names, newest, left_out):
    steps(root, *names)
    about = describe(root)
    assert about["checkpoint"] == f"checkpoints/{newest}" and list(about["left_out"]) == left_out
    for place in (root, root / "checkpoints" / newest):
        assert same(weights(load_any(place, base=BASE)), weights(load_any(PUBLISHED, base=BASE)))


def test_a_step_without_its_head_is_incomplete_and_no_older_one_is_taken(root):
    steps(root, "step_1", "step_2")
    (root / "checkpoints" / "step_2" / "rm_head.pt").unlink()
    with pytest.raises(CheckpointError, match="step_2 rm_head.pt is missing"):
        load_any(root, base=BASE)


def test_half_a_download_is_told_apart_from_another_folder(root):
    shutil.rmtree(root / "checkpoint")
    with pytest.raises(CheckpointError, match="training configuration but no weights"):
        describe(root)
    (root / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no model folder"):
        describe(root)


def test_weights_without_a_configuration(root):
    (root / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has weights but no config.json"):
        describe(root)


def test_from_inside_the_folder(root, monkeypatch):
    monkeypatch.chdir(root / "checkpoint")
    assert describe(".")["checkpoint"] == "checkpoint"


def test_info_tells_dtypes_and_hashes_on_disk(root):
    about = describe(in_bfloat16(root))
    assert about["tensors"]["rm_head.pt"] == {
        "count": 87,
        "parameters": about["head_parameters"],
        "dtypes": ["bfloat16"],
    }
    assert about["tensors"]["backbone_lora/adapter_model.safetensors"]["dtypes"] == ["bfloat16"]
    head = root / "checkpoint" / "rm_head.pt"
    entry = {"sha256": hashlib.sha256(head.read_bytes()).hexdigest(), "bytes": head.stat().st_size}
    assert about["files"]["rm_head.pt"] == entry


def test_half_precision_on_disk_is_float32_in_memory(root):
    loaded = load_any(in_bfloat16(root), base=BASE)
    assert {value.dtype for value in weights(loaded).values()} == {torch.float32}


def test_a_whole_checkpoint_verifies():
    verify(PUBLISHED)
