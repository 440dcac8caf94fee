import pytest
import torch
from safetensors.torch import load_file

from dina_lrm.checkpoint import describe, load_any, verify
from dina_lrm.errors import BaseMismatchError, CheckpointError
from tests.checkpoint.variants import BASE, copy_published, edit_adapter, edit_adapter_config, edit_training
from tests.golden_fixtures import PUBLISHED

SUFFIXES = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


@pytest.fixture
def root(tmp_path):
    return copy_published(tmp_path / "reward")


def adapter(path, **options):
    return load_any(path, base=BASE, **options).network.backbone.adapter_state()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def plain(name):
    return name.removeprefix("base_model.model.")


def named(name, adapter):
    return name.replace(".weight", f".{adapter}.weight")


@pytest.mark.parametrize(
    ("dialect", "prefix", "name"),
    [
        (lambda n: n, "base_model.model.", None),
        (lambda n: named(plain(n), "default"), None, "default"),
        (lambda n: named(n, "rm_eval"), "base_model.model.", "rm_eval"),
        (plain, None, None),
    ],
)
def test_every_dialect_is_read_and_told(root, dialect, prefix, name):
    edit_adapter(root, lambda state: {dialect(key): value for key, value in state.items()})
    assert same(adapter(root), adapter(PUBLISHED))
    assert describe(root)["adapter_keys"] == {"prefix": prefix, "name": name}
    verify(root)


def test_the_minimal_file_of_the_second_dialect_is_enough(root):
    (root / "checkpoint" / "backbone_lora" / "adapter_config.json").write_text("{}")
    minimal = {"r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian", "target_modules": SUFFIXES}
    edit_adapter_config(root, **minimal)
    assert same(adapter(root), adapter(PUBLISHED))
    assert load_any(root, base=BASE).config.backbone.adapter.alpha == 4


def test_two_adapters_in_a_file_are_not_confused(root):
    edit_adapter(root, lambda s: {named(k, a): v.clone() for k, v in s.items() for a in ("default", "ema")})
    with pytest.raises(CheckpointError, match=r"several adapters \(default, ema\)"):
        load_any(root, base=BASE)


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        (r".*\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)", None),
        (SUFFIXES, r"nothing\..*"),
        ([r"attn.to_q", *SUFFIXES], []),
    ],
)
def test_targets_may_be_a_rule_as_in_peft(root, targets, excluded):
    edit_adapter_config(root, target_modules=targets, exclude_modules=excluded)
    loaded = load_any(root, base=BASE)
    assert same(loaded.network.backbone.adapter_state(), adapter(PUBLISHED))
    assert len(loaded.config.notes) == (isinstance(targets, str) or isinstance(excluded, str))


def test_a_rule_must_be_covered_too(root):
    edit_adapter_config(root, target_modules=r".*\.attn2?\..*(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)")
    edit_adapter(root, lambda s: {k: v for k, v in s.items() if ".1.attn2.to_q" not in k})
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors, the first is 'transformer_blocks.1.attn2.to_q.lora_A"):
        load_any(root, base=BASE)


def test_excluded_layers_are_not_missed(root):
    excluded = ["transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3.attn.to_add_out"]
    edit_adapter_config(root, exclude_modules=excluded)
    edit_adapter(root, lambda s: {k: v for k, v in s.items() if not any(e in k for e in excluded)})
    assert len(adapter(root)) == len(adapter(PUBLISHED)) - 4
    assert describe(root)["backbone"]["adapter"]["exclude_modules"] == excluded


def test_chosen_blocks_by_number(root):
    edit_adapter_config(root, layers_to_transform=[0, 2], layers_pattern="transformer_blocks")
    edit_adapter(root, lambda s: {k: v for k, v in s.items() if ".0.attn" in k or ".2.attn" in k})
    names = adapter(root)
    assert {name.split(".")[1] for name in names} == {"0", "2"}


def test_an_adapter_on_attn_alone_is_taken_as_it_is_and_said(root):
    edit_adapter(root, lambda s: {k: v.half() for k, v in s.items() if ".attn2." not in k})
    loaded = load_any(root, base=BASE)
    assert not any(".attn2." in name for name in loaded.network.backbone.adapter_state())
    assert "attn.to_q" in loaded.config.backbone.adapter.target_modules
    assert "MindSpore" in loaded.config.notes[0] and "MindSpore" in describe(root)["notes"][0]


def test_an_adapter_that_lacks_some_of_attn2_is_incomplete(root):
    edit_adapter(root, lambda s: {k: v for k, v in s.items() if "0.attn2." not in k})
    with pytest.raises(CheckpointError, match="lacks 8 tensors, the first is 'transformer_blocks.0.attn2"):
        load_any(root, base=BASE)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias to 'all'"),
        ({"rank_pattern": {"to_q": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"to_q": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "peft_type to 'LOHA'"),
        ({"r": None}, "must state r"),
        ({"lora_alpha": "8"}, "must state lora_alpha"),
        ({"r": True}, "must state r"),
        ({"target_modules": 3}, "target_modules must be a list"),
        ({"target_modules": "("}, "no regular expression"),
        ({"target_modules": ["to_q"]}, "does not name layer 'transformer_blocks.0.attn.add_k_proj'"),
        ({"r": 8}, r"must have rank 8 .*its shape is \[4, 64\]"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(root, updates, message):
    edit_adapter_config(root, **updates)
    for act in (lambda: load_any(root, base=BASE), lambda: verify(root), lambda: describe(root)):
        with pytest.raises(CheckpointError, match=message):
            act()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_adapter_config_is_named(root, content):
    (root / "checkpoint" / "backbone_lora" / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        verify(root)


def without(part):
    return lambda s: {k: v for k, v in s.items() if part not in k}


def strange(state):
    return state | {"base_model.model.transformer_blocks.0.attn.to_q.lora_magnitude_vector": torch.ones(4)}


def infinite(state):
    next(iter(state.values())).fill_(float("inf"))
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("0.attn.to_q.lora_B"), r"lacks 'transformer_blocks.0.attn.to_q.lora_B.weight', the other half"),
        (strange, "lora_magnitude_vector' is no LoRA matrix"),
        (infinite, "not finite"),
        (lambda s: {}, "holds no tensors"),
        (lambda s: {k: v.T.contiguous() for k, v in s.items()}, "must have rank 4"),
    ],
)
def test_damaged_adapters_are_refused_without_their_base(root, change, message):
    edit_adapter(root, change)
    for act in (lambda: verify(root), lambda: load_any(root, base="nowhere")):
        with pytest.raises(CheckpointError, match=message):
            act()


def test_a_cut_file_is_named(root):
    path = root / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="adapter_model.safetensors cannot be read"):
        load_any(root, base="nowhere")


@pytest.mark.parametrize(
    ("name", "message"), [("adapter_model.ckpt", "MindSpore's own"), ("adapter_model.bin", "pickle")]
)
def test_other_formats_are_refused_with_the_way_out(root, name, message):
    folder = root / "checkpoint" / "backbone_lora"
    (folder / "adapter_model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=f"{message}.*adapter_model.safetensors"):
        load_any(root, base=BASE)


def as_zimage(state):
    return {k.replace("transformer_blocks", "layers").replace(".attn", ".attention"): v for k, v in state.items()}


def test_another_backbones_adapter_is_told_in_words(root):
    edit_adapter(root, as_zimage)
    with pytest.raises(BaseMismatchError, match=r"Stable Diffusion 3.*'layers.0.attention.add_k_proj'.*Z-Image"):
        load_any(root, base=BASE)


def test_an_unknown_networks_adapter_is_told_by_its_first_layer(root):
    edit_adapter(root, lambda s: {k.replace("transformer_blocks", "towers"): v for k, v in s.items()})
    with pytest.raises(BaseMismatchError, match=r"another network.*'towers.0.attn.add_k_proj'"):
        load_any(root, base=BASE)


def test_an_adapter_of_a_wider_network_is_told_by_the_size(root):
    edit_adapter(root, lambda s: {k: torch.cat([v, v], dim=1 if "lora_A" in k else 0) for k, v in s.items()})
    with pytest.raises(BaseMismatchError, match=r"is \[4, 128\], but base .*needs \[4, 64\]"):
        load_any(root, base=BASE)


def test_blocks_after_the_last_tap_change_nothing(root, tmp_path):
    """Six blocks trained, four read: the adapter of the last two is left out."""
    path = root / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
    more = {k.replace("blocks.3.", "blocks.5."): v.clone() for k, v in load_file(path).items() if "blocks.3." in k}
    more = {k: v for k, v in more.items() if "add_q" not in k and "to_add_out" not in k}
    edit_adapter(root, lambda state: state | more)
    edit_training(root, model__num_transformer_layers=6)
    assert same(adapter(root), adapter(PUBLISHED))


def test_merged_by_default_and_apart_on_request(root):
    from diffusers import DiffusionPipeline

    def branches(**options):
        names = load_any(root, **options).network.state_dict()
        return any("lora_" in name for name in names)

    pipeline = DiffusionPipeline.from_pretrained(BASE)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    assert not branches(base=BASE)
    assert branches(base=BASE, merge_adapter=False)
    assert branches(base=pipeline)
    assert not branches(base=pipeline, merge_adapter=True)
    assert same(before, pipeline.transformer.state_dict())
    assert same(adapter(root, merge_adapter=True), adapter(root, merge_adapter=False))
