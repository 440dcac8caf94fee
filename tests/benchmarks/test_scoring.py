from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import random_models, scoring, scoring_gpu, shapes
from benchmarks.scoring import COMPILED, PLAIN, Clock, Size, take_turns
from benchmarks.scoring_gpu import Peak, PixelShape
from dina_lrm.backbones import Backbone

CPU = torch.device("cpu")
SD3 = shapes.Base(
    name="tiny",
    kind="sd3",
    network=dict(
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
    ),
    vae="16 channels",
    prompt_length=5,
    sampling_prompt_length=7,
    evaluations=2,
    taps=(1, 2),
    head=shapes.QueryHeadConfig(num_attention_heads=2),
    source="nobody's",
)
FLUX = replace(
    SD3,
    kind="flux",
    network=dict(
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        patch_size=1,
        in_channels=64,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ),
)
PIXELS = PixelShape(
    vae={**shapes.VAES["16 channels"][1], "block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1},
    text=dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=16,
        pad_token_id=0,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]),
    ),
    vision=dict(hidden_size=32, embed_dim=16, depth=1, num_heads=2),
    side=56,
    text_tokens=3,
)


def compiled_never(self: Backbone, **options: Any) -> None:
    """In place of compiling, which takes longer than all of these tests."""


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "compile_blocks", compiled_never)


def size(turns: int = 2) -> Size:
    return Size(SD3, 64, turns, matmul_side=16)


def test_first_blocks_keep_what_the_taps_need_and_no_more() -> None:
    sd3 = random_models.first_blocks(shapes.BASES["SD3.5 Medium"], (4, 8, 12))
    flux = random_models.first_blocks(shapes.BASES["FLUX.1 dev"], (8, 12, 16, 19))
    assert sd3.network["num_layers"] == 13 and sd3.settings()[0].image_taps == (4, 8, 12)
    assert (flux.network["num_layers"], flux.network["num_single_layers"]) == (19, 0)
    for base, whole in ((sd3, "SD3.5 Medium"), (flux, "FLUX.1 dev")):
        latents = base.latents(256, 256)
        asked = random_models.flops_of_reward(shapes.BASES[whole], latents)
        assert random_models.flops_of_reward(base, latents) == asked


@pytest.mark.parametrize("base", [SD3, FLUX], ids=["sd3", "flux"])
def test_models_share_one_storage_and_score(base: shapes.Base) -> None:
    network = random_models.make_network(base)
    assert not any(value.is_meta for value in network.state_dict().values())
    model, other = (random_models.make_model(base, network) for _ in range(2))
    kept, again = (dict(one.network.backbone.network.named_parameters()) for one in (model, other))
    assert all(value.data_ptr() == again[name].data_ptr() for name, value in kept.items())
    state, conditioning = random_models.make_inputs(model.network.backbone, base.latents(64, 64), 5, batch=2)
    with torch.no_grad():
        assert bool(model.utility(state, conditioning).isfinite().all())


def test_plain_diffusers_runs_the_same_blocks() -> None:
    """What the taps saw is what the plain network's blocks give."""
    network = random_models.make_network(SD3)
    plain = random_models.plain_network(SD3, network)
    model = random_models.make_model(SD3, network)
    state, conditioning = random_models.make_inputs(model.network.backbone, SD3.latents(64, 64), 5)
    seen: list[torch.Tensor] = []
    plain.transformer_blocks[-1].register_forward_hook(lambda module, given, out: seen.append(out[1]))
    with torch.no_grad():
        plain(state.noised_latents, conditioning.prompt_embeds, conditioning.pooled_prompt_embeds, 1000 * state.sigma)
        torch.testing.assert_close(seen[0], model.features(state, conditioning).image_tokens[-1])
    latents = SD3.latents(64, 64)
    assert random_models.flops_of_plain(SD3, latents) < random_models.flops_of_reward(SD3, latents)


def test_turns_are_taken_and_a_share_is_of_the_products_beside() -> None:
    now, called = [0.0], []

    def way(name: str, seconds: float) -> Any:
        def call() -> torch.Tensor:
            now[0] += seconds
            called.append(name)
            return torch.zeros(1)

        return call

    def read() -> float:
        now[0] += 0.5  # a product takes that long, and every way that much more
        return now[0]

    times = take_turns({"a": way("a", 0.5), "b": way("b", 1.5)}, Clock("fake", 1, read), 2, 4)
    assert called == ["a", "b", "a", "b", "b", "a"]
    assert times.seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0]} and times.matmul_flops == 128
    assert times.shares("a", 128)["share"] == 0.5 and times.shares("b", 128)["share"] == 0.25
    assert times.against("b", "a")["times"] == 2


def test_rows_of_shares_have_a_target_where_the_number_is() -> None:
    rows = scoring.share_rows(size(), random_models.make_network(SD3))
    first, second = rows[:4], rows[4:]
    assert [row["what"] for row in first] == [PLAIN, f"{PLAIN}, attention not counted", "ours", COMPILED]
    assert [row["target"] for row in first] == [None, None, scoring.TARGET, scoring.TARGET]
    assert all(row["clock"].startswith("CPU time, 1 thread") for row in first)
    assert all(row["clock"].startswith("wall") and row["target"] is None for row in second)
    assert first[0]["GFLOP"] > first[1]["GFLOP"] and first[0]["s"] == first[1]["s"]
    assert first[2]["GFLOP"] == random_models.flops_of_reward(SD3, SD3.latents(64, 64)) / 1e9
    assert first[2]["blocks"] == 2 and first[2]["picture"] == "64 x 64"


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with scoring.one_thread().set():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_an_adapter_gives_the_same_merged_and_is_not_zero() -> None:
    network = random_models.make_network(SD3)
    merged, apart = scoring.adapter_rows(size(), network)
    assert merged["times"] == 1 and apart["against"] == merged["what"]
    assert apart["largest difference"] < 1e-5
    with_it = random_models.make_model(SD3, network, adapter=True).network.backbone
    assert all(bool(value.any()) for name, value in with_it.adapter_state().items() if "lora_B" in name)


def test_ensembles_agree_however_they_are_run() -> None:
    rows = scoring.ensemble_rows(size(), random_models.make_network(SD3))
    assert len(rows) == 5 and all(row["largest difference"] < 1e-5 for row in rows)
    assert {row["against"] for row in rows} == {"3 calls"}


def test_precisions_stand_against_one_product() -> None:
    rows = scoring.precision_rows(size(), random_models.make_network(SD3))
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]


def test_without_a_gpu_one_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scoring_gpu.rows(quick=True) == [{"what": "on a GPU", "note": "no GPU here"}]


# The GPU's functions, walked through on the CPU.


def test_peaks_are_stated_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = scoring_gpu.peak_of(CPU, side=16)
    assert measured.rate > 0 and measured.told == "cpu, product of 16 squared"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert scoring_gpu.peak_of(torch.device("cuda")) == Peak(756e12, "NVIDIA H100 PCIe, stated")


@pytest.mark.parametrize("base", [SD3, FLUX], ids=["sd3", "flux"])
def test_speed_rows_keep_what_does_not_fit(base: shapes.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = scoring_gpu.make_inputs

    def refuse(backbone: Any, latents: Any, length: int, batch: int) -> Any:
        if batch > 2:
            raise torch.OutOfMemoryError("no room")
        return timed(backbone, latents, length, batch)

    monkeypatch.setattr(scoring_gpu, "make_inputs", refuse)
    monkeypatch.setattr(scoring_gpu, "most_memory", lambda device: 3_000_000_000)
    rows = scoring_gpu.speed_rows(base, CPU, Peak(1e12, "made up"), (1, 2, 4), side=64, turns=1)
    assert [row["batch"] for row in rows] == [1, 2, 4] * 2
    assert [row["what"] for row in rows] == ["tiny, eager"] * 3 + ["tiny, blocks compiled"] * 3
    assert all(row["note"] == "out of memory" and "share" not in row for row in rows[2::3])
    fits = rows[1]
    assert fits["images/s"] == pytest.approx(2 / fits["s"]) and fits["GB at peak"] == 3
    flops = random_models.flops_of_reward(base, base.latents(64, 64), 2)
    assert fits["share"] == pytest.approx(flops / fits["s"] / 1e12)


def test_gradient_rows_of_both_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_gpu, "most_memory", lambda device: 2_000_000_000)
    rows = scoring_gpu.gradient_rows(SD3, CPU, (56,), side=64, shape=PIXELS)
    assert [row["what"].endswith("checkpointed") for row in rows] == [False, True] * 2
    assert [row["GB in the paper"] for row in rows] == [39.1, None, 80.4, None]
    assert all(row["GB at peak"] == 2 and row["s"] > 0 for row in rows)


@pytest.mark.parametrize("quick", [True, False])
def test_all_rows_of_a_gpu(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan alone: what is asked of which base."""
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scoring_gpu, "peak_of", lambda device: Peak(1.0, "made up"))
    monkeypatch.setattr(
        scoring_gpu, "speed_rows", lambda base, device, peak, batches, **_: asked.append((base.name, batches)) or []
    )
    monkeypatch.setattr(
        scoring_gpu, "gradient_rows", lambda base, device, sides: asked.append((base.name, sides)) or []
    )
    assert scoring_gpu.rows(quick) == []
    batches = (1, 4) if quick else (1, 2, 4, 8, 16)
    names = ["SD3.5 Medium", "SD3.5 Medium"] if quick else ["SD3.5 Medium", "FLUX.1 dev", "SD3.5 Medium"]
    assert [name for name, _ in asked] == names and asked[0][1] == batches
