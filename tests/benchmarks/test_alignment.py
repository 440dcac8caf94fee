from __future__ import annotations

import pytest
import torch

from benchmarks import alignment
from benchmarks.alignment import Case, Pair, measured
from tests.alignment.tiny import make_world
from tests.benchmarks.test_cost import TINY

CASE = Case("ReFL", dict(kind="refl", kl=0.1), 2, 2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    world = make_world(tmp_path_factory.mktemp("world"))
    config = CASE.settings(world / "base", world / "reward", world)
    small = config.sampler.model_copy(update={"height": 64, "width": 64})
    return Pair.of(config.model_copy(update={"sampler": small}))


def test_each_naive_way_costs_what_it_says(pair) -> None:
    rows = {row["update"]: row for row in measured(CASE, pair, 1)}
    ours, naive = rows["ours"], rows["naive"]
    assert ours["bytes over ours"] == ours["FLOPs over ours"] == ours["time over ours"] == 1
    assert rows["reference is a second network"]["FLOPs over ours"] == pytest.approx(1, abs=0.01)
    assert rows["prompts encoded each time"]["FLOPs over ours"] > 1
    assert rows["reward on its own base, through pictures"]["MB at peak"] > ours["MB at peak"]
    assert naive["MB held"] > max(row["MB held"] for name, row in rows.items() if name != "naive")
    assert 0 < ours["CPU seconds without sampling"] < ours["CPU seconds"]


def test_a_second_reference_and_prompts_encoded_again_change_no_loss(pair) -> None:
    losses = {}
    kept = {name: value.detach().clone() for name, value in pair.run._parameters.items()}
    for name, naive in pair.kinds().items():
        with torch.no_grad():
            for key, value in pair.run._parameters.items():
                value.copy_(kept[key])
        with naive():
            losses[name] = pair.run.update(7)["loss"]
    same = ("reference is a second network", "prompts encoded each time")
    assert all(losses[name] == pytest.approx(losses["ours"], abs=1e-5) for name in same)
    assert losses["naive"] != pytest.approx(losses["ours"], abs=1e-3)  # pictures lose something


def test_what_is_held_counts_shared_weights_once(pair) -> None:
    pair.run.update(0)  # the optimiser has its averages
    policy = sum(p.nbytes for p in pair.run.cast.policy.backbone.network.parameters())
    reward = pair.run.cast.mixture.terms[0].term.reward.network
    own = sum(p.nbytes for name, p in reward.named_parameters() if "lora_" in name or name.startswith("head."))
    learned = sum(p.nbytes for p in pair.run._parameters.values())
    assert pair.held("ours") == pytest.approx(policy + own + 3 * learned, rel=0.01)


def test_the_published_figures_stand_beside_what_is_counted(monkeypatch) -> None:
    monkeypatch.setattr(alignment, "SIDE", 64)
    monkeypatch.setattr(alignment, "PAPER", TINY.name)
    monkeypatch.setitem(alignment.BASES, TINY.name, TINY)
    (row,) = alignment.counted(("latents",), (False,))
    assert (row["the paper's GB, measured"], row["the paper's T MACs"]) == (39.1, 18.3)
    assert row["kind"] == "counted" and 0 < row["GB at peak"] < row["GB"] and 0 < row["GB held"] < row["GB"]


def test_activations_that_are_computed_again_are_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(alignment, "SIDE", 256)
    monkeypatch.setattr(alignment, "PAPER", TINY.name)
    monkeypatch.setitem(alignment.BASES, TINY.name, TINY)
    kept, again = alignment.counted(("latents",))
    assert again["GB at peak"] < 0.8 * kept["GB at peak"] and again["GB held"] == kept["GB held"]
