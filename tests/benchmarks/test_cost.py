from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import cost, cost_page, shapes
from benchmarks.cost import Cost, count_flops, measure

ROOT = Path(__file__).parents[2]

WIDTH, HEADS, TEXT, POOLED = 16, 2, 12, 10
TINY = shapes.Base(
    name="tiny",
    kind="sd3",
    network=dict(
        num_layers=3,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        caption_projection_dim=WIDTH,
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
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


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    return 4 * queries * keys * width


def test_a_linear_layer_is_two_flops_a_weight_and_its_gradient_as_many() -> None:
    layer = shapes.lay_out(lambda: nn.Linear(6, 10))
    found = measure(layer, meta(7, 6).to(shapes.DTYPE))
    assert found.flops == linear(7, 6, 10)
    assert found.flops_with_gradient == 2 * found.flops


def test_attention_is_counted_though_its_kernel_is_fused() -> None:
    key = meta(1, 2, 9, 8)
    found = measure(lambda query: F.scaled_dot_product_attention(query, key, key), meta(1, 2, 5, 8))
    assert found.flops == attention(5, 9, 16)
    # To the queries alone: the gradients of the scores and of the queries, as much again.
    assert found.flops_with_gradient == 2 * found.flops
    itself = measure(lambda x: F.scaled_dot_product_attention(x, x, x), meta(1, 2, 5, 8))
    assert itself.flops_with_gradient == 3 * itself.flops


def test_convolutions_are_counted() -> None:
    layer = shapes.lay_out(lambda: nn.Conv2d(3, 4, 3, padding=1))
    with torch.no_grad():
        assert count_flops(lambda: layer(meta(1, 3, 8, 8).to(shapes.DTYPE))) == 2 * 64 * 4 * 3 * 9


def test_a_backbone_costs_what_the_hand_finds() -> None:
    """Two blocks of three, the first with dual attention, of 16 image and 5 text tokens."""
    image, text, d = 16, TINY.prompt_length, WIDTH
    backbone = shapes.lay_out_backbone(TINY)
    state, conditioning = backbone.example(TINY.latents(64, 64), text)
    embed = linear(image, 16 * 2 * 2, d) + linear(text, TEXT, d)
    temb = linear(1, 256, d) + linear(1, d, d) + linear(1, POOLED, d) + linear(1, d, d)
    block = (
        linear(1, d, 6 * d) * 2  # modulation
        + linear(image + text, d, d) * 4  # queries, keys, values, output
        + attention(image + text, image + text, d)
        + linear(image + text, d, 4 * d) * 2  # feed-forward
    )
    dual = linear(1, d, 3 * d) + linear(image, d, d) * 4 + attention(image, image, d)
    with torch.no_grad():
        found = count_flops(lambda: backbone.read(state, conditioning))
    assert found == embed + temb + 2 * block + dual


def test_costs_add_up_where_they_can() -> None:
    assert Cost(3, 5, 7, 9) + Cost(1, 2) == Cost(4, 7)
    assert Cost(3, 5) + Cost(1) == Cost(4)
    assert Cost(3, 5) * 4 == Cost(12)


def test_rows_have_their_columns_and_agree_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "PAPER", TINY.name)
    monkeypatch.setattr(cost, "scorer_cost", lambda name: Cost(10**9, 2 * 10**9))
    monkeypatch.setattr(cost, "decode_cost", lambda vae, latents: Cost(2 * 10**9, 4 * 10**9))
    rows = cost._rows_of_base(TINY, 64, 64, None)
    assert [row["kind"] for row in rows] == ["reward", "ensemble", "step", "sampling", "part"]
    columns = set(rows[2])
    assert all(columns <= set(row) for row in rows)
    reward, ensemble, step, sampling, decoder = rows
    assert reward["T FLOPs"] == 2 * reward["T MACs"]
    assert reward["T FLOPs"] < reward["T FLOPs with gradient"] < 3 * reward["T FLOPs"]
    assert 2 < ensemble["T FLOPs"] / reward["T FLOPs"] <= 3
    assert sampling["T FLOPs"] == pytest.approx(cost.STEPS * step["T FLOPs"] + decoder["T FLOPs"])
    assert reward["% of HPSv3"] == pytest.approx(100 * reward["T FLOPs"] / 3e-3)
    assert reward["blocks"] == "2 of 3" and reward["GB at peak"] < reward["GB at peak with gradient"]


@pytest.mark.parametrize(
    ("name", "whole", "head", "adapter"),
    [
        ("SD3.5 Medium", 2_243_171_520, 139_296_003, 28_311_552),  # head and adapter as published with the paper
        ("Z-Image Turbo", 6_154_908_736, 185_723_907, 19_660_800),
    ],
)
def test_real_sizes_are_the_published_ones(name: str, whole: int, head: int, adapter: int) -> None:
    base = shapes.BASES[name]
    assert cost.size_of(shapes.lay_out_backbone(base, whole=True))[0] == whole
    assert cost.size_of(shapes.lay_out_reward(base).head)[0] == head
    assert shapes.adapter_size(base) == adapter


def test_the_page_shows_what_was_counted() -> None:
    rows = cost_page.read_rows()
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for table in cost_page.TABLES:
        assert table(rows) in page, f"docs/cost.md is older than its results: {table.__name__}"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert cost_page.draw(cost_page.read_rows(), tmp_path / "cost.png").stat().st_size < 80_000
