"""There and back, byte for byte, without a base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dina_lrm.backbones import AdapterConfig, BackboneConfig, load_backbone
from dina_lrm.checkpoint import (
    BaseReference,
    BradleyTerryConfig,
    CalibrationConfig,
    ModelConfig,
    convert_model,
    describe,
    load_any,
    save_model,
    verify,
)
from dina_lrm.errors import BaseMismatchError, CheckpointError
from dina_lrm.heads import MeanPoolHeadConfig, QueryHeadConfig
from dina_lrm.model import build_network
from dina_lrm.types import NoisedState
from tests.checkpoint.variants import (
    BASE,
    copy_published,
    edit_adapter,
    edit_adapter_config,
    edit_training,
    full_model,
    head_only,
    in_bfloat16,
)
from tests.pipelines import build_pipeline


def contents(folder):
    """Every file of a folder by its name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tensors(root):
    """All tensors of a published folder by file and name: dtype, shape, bytes."""
    checkpoint, found = root / "checkpoint", {}
    for path in [*checkpoint.glob("*.pt"), *checkpoint.rglob("*.safetensors")]:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        for name, value in state.items():
            raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[path.name, name] = (value.dtype, tuple(value.shape), raw)
    return found


def utility(model, cases, conditioning, **options):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.5))
    with torch.no_grad():
        return load_any(model, base=BASE, **options).network(state, conditioning)


def bounded(folder):
    root = copy_published(folder)
    edit_training(root, model__use_logistic=True)
    return root


def bounded_and_saved(folder):
    root = full_model(folder)
    path = root / "checkpoint" / "full_model.pt"
    state = torch.load(path, weights_only=True)
    state |= {"reward_head.eta3": torch.tensor(0.25), "reward_head.eta4": torch.tensor(-0.5)}
    torch.save(state, path)
    edit_training(root, model__use_logistic=True)
    return root


def bfloat16(folder):
    return in_bfloat16(copy_published(folder))


def by_rule(folder):
    root = copy_published(folder)
    edit_adapter_config(root, target_modules=r".*\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)")
    return root


def on_attn_alone(folder):
    root = copy_published(folder)
    edit_training(root, model__backbone_model_id="stabilityai/stable-diffusion-3.5-medium")
    edit_adapter(root, lambda s: {k: v for k, v in s.items() if ".attn2." not in k})
    return root


def named_head(folder):
    root = head_only(folder)
    edit_training(root, model__backbone_model_id="stabilityai/stable-diffusion-3.5-medium")
    return root


MAKERS = [copy_published, bfloat16, named_head, full_model, bounded, bounded_and_saved, by_rule, on_attn_alone]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_published_to_ours_and_back(tmp_path, make):
    root = make(tmp_path / "published")
    before = contents(root)
    convert_model(root, tmp_path / "ours")
    convert_model(tmp_path / "ours", tmp_path / "back", "published")
    assert contents(root) == before
    assert tensors(tmp_path / "back") == tensors(root)
    for name in ("config.json", "checkpoint/backbone_lora/adapter_config.json"):
        if (root / name).is_file():
            theirs, ours = json.loads((root / name).read_text()), json.loads((tmp_path / "back" / name).read_text())
            assert {key: value for key, value in ours.items() if key != "dina_lrm"} == theirs
    verify(tmp_path / "ours")
    verify(tmp_path / "back")
    convert_model(tmp_path / "back", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "ours")


@pytest.mark.parametrize("make", [copy_published, bfloat16, full_model, bounded, bounded_and_saved, by_rule])
def test_scores_are_the_same_before_and_after(tmp_path, make, cases, golden_conditioning):
    root = make(tmp_path / "published")
    convert_model(root, tmp_path / "ours")
    convert_model(tmp_path / "ours", tmp_path / "back", "published")
    wanted = utility(root, cases, golden_conditioning)
    for model in ("ours", "back"):
        assert torch.equal(utility(tmp_path / model, cases, golden_conditioning), wanted)


def trained(folder, golden_model, **changes):
    """A model of ours, as training saves it, with all that their schema has no words for."""
    config = ModelConfig(
        backbone=golden_model.config.backbone,
        base=BaseReference(name="elsewhere/tiny", revision="v1"),
        head=golden_model.config.head,
        calibration=CalibrationConfig(scale=2.0, shift=0.5, fitted_on="somewhere"),
        provenance={"steps": 3, "training": {"seed": 1}},
        notes=("a note",),
        **changes,
    )
    save_model(folder, golden_model.network, config)
    return folder


@pytest.mark.parametrize("likelihood", [None, BradleyTerryConfig(margin=1.0)])
def test_ours_to_published_and_back_is_the_same_folder(tmp_path, golden_model, likelihood):
    ours = trained(tmp_path / "ours", golden_model, **({} if likelihood is None else {"likelihood": likelihood}))
    convert_model(ours, tmp_path / "published", "published")
    convert_model(tmp_path / "published", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ours)


def test_a_whole_model_of_ours_comes_back(tmp_path):
    loaded = load_any(full_model(tmp_path / "full"), base=BASE)
    save_model(tmp_path / "ours", loaded.network, loaded.config.model_copy(update={"provenance": {}}))
    convert_model(tmp_path / "ours", tmp_path / "published", "published")
    assert sorted(p.name for p in (tmp_path / "published" / "checkpoint").iterdir()) == ["full_model.pt"]
    convert_model(tmp_path / "published", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "ours")


def test_what_we_publish_is_what_the_authors_read(tmp_path, golden_model):
    trained(tmp_path / "ours", golden_model)
    convert_model(tmp_path / "ours", tmp_path / "published", "published")
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert config["model"]["model_type"] == "thurstone"
    assert config["model"]["backbone_model_id"] == "elsewhere/tiny"
    assert config["model"]["lora_config"] == {"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"}
    assert config["model"]["visual_head_idx"] == [1, 2, 4] and config["model"]["num_transformer_layers"] == 4
    assert config["training"]["add_noise"] is True
    state = torch.load(tmp_path / "published" / "checkpoint" / "rm_head.pt", weights_only=True)
    golden = torch.load(copy_published(tmp_path / "golden") / "checkpoint" / "rm_head.pt", weights_only=True)
    assert type(state).__name__ == "OrderedDict" and state.keys() == golden.keys()
    names = load_file(tmp_path / "published" / "checkpoint" / "backbone_lora" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.transformer_blocks.") for name in names)


def test_the_section_brings_back_what_their_schema_cannot_say(tmp_path, golden_model):
    convert_model(trained(tmp_path / "ours", golden_model), tmp_path / "published", "published")
    about = describe(tmp_path / "published")
    assert about["calibration"]["scale"] == 2.0 and about["notes"] == ["a note"]
    assert about["base"]["revision"] == "v1" and about["base"]["signature"]["probe"]
    assert load_any(tmp_path / "published", base=BASE).config.calibration.shift == 0.5


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"model__visual_head_idx": [1, 2, 3]}, r"taps is \(1, 2, 3\) by the training configuration, \(1, 2, 4\)"),
        ({"model__use_logistic": True}, "head is "),
        ({"model__model_type": "bt"}, "likelihood is "),
        ({"model__backbone_model_id": "x"}, "base is x by"),
        ({"dina_lrm__schema_version": 9}, "schema_version 9"),
        ({"dina_lrm__surplus": 9}, "surplus"),
    ],
)
def test_two_halves_that_disagree_are_refused(tmp_path, golden_model, updates, message):
    convert_model(trained(tmp_path / "ours", golden_model), tmp_path / "published", "published")
    edit_training(tmp_path / "published", **updates)
    with pytest.raises(CheckpointError, match=message):
        verify(tmp_path / "published")


def test_hashes_travel_along(tmp_path, golden_model):
    convert_model(trained(tmp_path / "ours", golden_model), tmp_path / "published", "published")
    path = tmp_path / "published" / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="adapter_model.safetensors was changed"):
        verify(tmp_path / "published")


def test_the_logistic_start_is_written_out_and_left_out_again(tmp_path):
    convert_model(bounded(tmp_path / "published"), tmp_path / "ours")
    head = load_file(tmp_path / "ours" / "head.safetensors")
    assert (head["output.centre"].item(), round(head["output.width"].item(), 6)) == (0.0, 0.15)
    assert "eta3" in describe(tmp_path / "ours")["notes"][0]
    convert_model(tmp_path / "ours", tmp_path / "back", "published")
    state = torch.load(tmp_path / "back" / "checkpoint" / "rm_head.pt", weights_only=True)
    assert not {"eta3", "eta4"} & state.keys()


def test_provenance_is_the_whole_original(tmp_path):
    root = copy_published(tmp_path / "published")
    convert_model(root, tmp_path / "ours")
    provenance = describe(tmp_path / "ours")["provenance"]
    assert provenance["layout"] == "published" and provenance["checkpoint"] == "checkpoint"
    assert provenance["config"] == json.loads((root / "config.json").read_text())
    adapter = root / "checkpoint" / "backbone_lora" / "adapter_config.json"
    assert provenance["adapter_config"] == json.loads(adapter.read_text())


def test_an_original_that_is_no_longer_true_is_not_repeated(tmp_path):
    convert_model(copy_published(tmp_path / "published"), tmp_path / "ours")
    loaded = load_any(tmp_path / "ours", base=BASE)
    head = loaded.config.head.model_copy(update={"bounded": True})
    network = build_network(loaded.network.backbone, head)
    save_model(tmp_path / "changed", network, loaded.config.model_copy(update={"head": head}))
    convert_model(tmp_path / "changed", tmp_path / "back", "published")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["model"]["use_logistic"] is True and "learning_rate" not in config["training"]
    verify(tmp_path / "back")


def test_the_base_checks_travel_along(tmp_path):
    convert_model(copy_published(tmp_path / "published"), tmp_path / "ours")
    assert describe(tmp_path / "ours")["base"]["signature"]["vae_scaling_factor"] == 1.5305


def test_no_base_is_loaded(tmp_path, monkeypatch):
    from dina_lrm.checkpoint import stored

    monkeypatch.setattr(stored, "load_backbone", None)
    monkeypatch.setattr(stored, "sketch", None)
    convert_model(copy_published(tmp_path / "published"), tmp_path / "ours")
    convert_model(tmp_path / "ours", tmp_path / "back", "published")


# Where it is written.


def test_a_model_is_replaced_and_other_things_are_not(tmp_path):
    root = copy_published(tmp_path / "published")
    convert_model(root, tmp_path / "ours")
    first = contents(tmp_path / "ours")
    convert_model(root, tmp_path / "ours")
    assert contents(tmp_path / "ours") == first
    convert_model(tmp_path / "ours", tmp_path / "back", "published")
    convert_model(tmp_path / "ours", tmp_path / "back", "published")
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no part of a model"):
        convert_model(root, tmp_path / "photographs")
    with pytest.raises(CheckpointError, match="is a file; name a folder"):
        convert_model(root, tmp_path / "photographs" / "a.png")
    (tmp_path / "empty").mkdir()
    convert_model(root, tmp_path / "empty")


@pytest.mark.parametrize("out", [".", "inside/it", "..", "../published"])
def test_source_and_out_stay_apart(tmp_path, out):
    root = copy_published(tmp_path / "published")
    before = contents(root)
    with pytest.raises(CheckpointError, match="lie in one another"):
        convert_model(root, root / out)
    assert contents(root) == before


def test_the_other_layout_only(tmp_path, golden_model):
    root = copy_published(tmp_path / "published")
    with pytest.raises(CheckpointError, match="in the layout 'published' already"):
        convert_model(root, tmp_path / "out", "published")
    with pytest.raises(CheckpointError, match="in the layout 'dina_lrm' already"):
        convert_model(trained(tmp_path / "ours", golden_model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_leaves_nothing_behind(tmp_path):
    root = copy_published(tmp_path / "published")
    path = root / "checkpoint" / "rm_head.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="rm_head.pt"):
        convert_model(root, tmp_path / "ours")
    assert [p.name for p in tmp_path.iterdir()] == ["published"]


# What kind of network it is.


def test_a_head_alone_needs_a_name_that_tells_or_a_base(tmp_path):
    root = head_only(tmp_path / "published")
    with pytest.raises(CheckpointError, match=r"what kind of network .*'tiny'.*give the base"):
        convert_model(root, tmp_path / "ours")
    done = convert_model(root, tmp_path / "ours", base=BASE)
    assert describe(done.out)["base"]["name"] == BASE
    load_any(done.out)


def test_the_named_base_tells_if_it_is_here(tmp_path):
    root = head_only(tmp_path / "published")
    edit_training(root, model__backbone_model_id=BASE)
    convert_model(root, tmp_path / "ours")
    assert describe(tmp_path / "ours")["backbone"]["kind"] == "sd3"


def test_a_base_of_another_kind_is_refused(tmp_path):
    root = copy_published(tmp_path / "published")
    with pytest.raises(BaseMismatchError, match="is of FLUX"):
        convert_model(root, tmp_path / "ours", base=str(build_pipeline("flux", tmp_path / "flux")))


def model_of(kind, folder, head=None, taps=((1, 2), (1,)), **changes):
    base = build_pipeline(kind, folder / "base")
    config = BackboneConfig(kind=kind, image_taps=taps[0], text_taps=taps[1], adapter=AdapterConfig(rank=4, alpha=8))
    backbone = load_backbone(config, str(base))
    for name, parameter in backbone.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    head = head or QueryHeadConfig(width=32, num_attention_heads=4)
    reference = BaseReference(name=str(base), random_seed=changes.pop("random_seed", None))
    model = ModelConfig(backbone=config, base=reference, head=head, **changes)
    save_model(folder / "ours", build_network(backbone, head), model)
    return folder / "ours"


@pytest.mark.parametrize("kind", ["flux", "zimage", "qwen_image"])
def test_the_release_families_go_there_and_back(tmp_path, kind):
    ours = model_of(kind, tmp_path)
    convert_model(ours, tmp_path / "published", "published")
    convert_model(tmp_path / "published", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ours)
    verify(tmp_path / "published")
    load_any(tmp_path / "published")
    config = tmp_path / "published" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "dina_lrm"}))
    load_any(tmp_path / "published")  # their part alone is enough where the base is at hand


@pytest.mark.parametrize("kind", ["sd35", "flux", "zimage", "qwen_image", "wan", "sdxl", "sd15"])
def test_every_backbones_adapter_is_an_ordinary_peft_adapter(tmp_path, kind):
    from peft import PeftModel

    from dina_lrm.backbones.registry import backbone_class

    name = "sd3" if kind == "sd35" else kind
    base = build_pipeline(kind, tmp_path / "base")
    taps = ((1, 2), (0,)) if kind in ("sdxl", "sd15", "wan") else ((1, 2), (1,))
    config = BackboneConfig(kind=name, image_taps=taps[0], text_taps=taps[1], adapter=AdapterConfig(rank=2, alpha=4))
    head = MeanPoolHeadConfig()
    network = build_network(load_backbone(config, str(base)), head)
    save_model(tmp_path / "ours", network, ModelConfig(backbone=config, base=BaseReference(name=str(base)), head=head))
    cls = backbone_class(name)
    whole = cls.network_class.from_pretrained(base, subfolder=cls.part)
    adapted = PeftModel.from_pretrained(whole, tmp_path / "ours" / "adapter")
    theirs = {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if "lora_" in n}
    ours = load_file(tmp_path / "ours" / "adapter" / "adapter_model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[n], ours[n]) for n in ours)
    load_any(tmp_path / "ours")


@pytest.mark.parametrize(
    ("kind", "taps", "options", "message"),
    [
        ("sd3", ((1, 2), (1,)), {"head": MeanPoolHeadConfig()}, "its head is 'mean_pool'"),
        ("sd3", ((1, 2), (1,)), {"likelihood": BradleyTerryConfig(margin=0.5)}, "margin=0.5.*thurstone-constant"),
        ("sd3", ((1, 2), (1,)), {"random_seed": 3}, "random weights"),
        ("sdxl", ((1, 2), (0,)), {}, "its backbone is 'sdxl'"),
        ("wan", ((1, 2), (0,)), {}, "its backbone is 'wan'"),
    ],
)
def test_what_their_layout_cannot_say_is_refused(tmp_path, kind, taps, options, message):
    ours = model_of(kind, tmp_path, taps=taps, **options)
    with pytest.raises(CheckpointError, match=message):
        convert_model(ours, tmp_path / "published", "published")
    assert not (tmp_path / "published").exists()


def test_another_backbones_adapter_in_a_published_folder(tmp_path):
    """A Z-Image adapter beside an SD3 head."""
    convert_model(model_of("zimage", tmp_path), tmp_path / "theirs", "published")
    root = copy_published(tmp_path / "published")
    shutil.rmtree(root / "checkpoint" / "backbone_lora")
    shutil.copytree(tmp_path / "theirs" / "checkpoint" / "backbone_lora", root / "checkpoint" / "backbone_lora")
    with pytest.raises(BaseMismatchError, match=r"Stable Diffusion 3.*attention\.to_.*Z-Image"):
        load_any(root, base=BASE)
