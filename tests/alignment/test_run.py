"""A run in memory: what it shares, what it learns, and what it refuses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from dina_lrm.alignment.algorithms import Judged
from dina_lrm.alignment.rewards import Finished, LatentTerm, Verdict
from dina_lrm.alignment.run import AlignRun, DivergedError
from dina_lrm.errors import BaseMismatchError, ConfigError, DataError, NoAnswerError, WorkError
from dina_lrm.runtime.accelerator import create_accelerator
from tests.alignment.tiny import ALGORITHMS, FACTORY, PROMPTS, Clock, configured, make_world, mean_colour
from tests.pipelines import build_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def build(world, tmp_path):
    def make(algorithm=None, given=None, out="run", **changes) -> AlignRun:
        config = configured(world, tmp_path / out, algorithm, **changes)
        return AlignRun(config, create_accelerator(device="cpu"), given)

    return make


def weights(run: AlignRun) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run._parameters.items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_moves_the_policy_and_nothing_else(build, name) -> None:
    run = build(ALGORITHMS[name])
    reward = run.cast.mixture.terms[0].term.reward
    fixed = {key: value.clone() for key, value in run.cast.policy.pipeline.transformer.state_dict().items()}
    judge = {key: value.clone() for key, value in reward.network.state_dict().items()}
    before = weights(run)
    row = run.update(0)
    assert math.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["judged"] == 1.0
    assert any(not torch.equal(before[key], value) for key, value in weights(run).items())
    for kept, now in ((fixed, run.cast.policy.pipeline.transformer.state_dict()), (judge, reward.network.state_dict())):
        assert all(torch.equal(kept[key], now[key]) for key in kept)
    assert not any(p.requires_grad or p.grad is not None for p in reward.network.parameters())


def test_base_weights_exist_once_for_policy_reward_and_reference(build) -> None:
    run = build()
    reward = run.cast.mixture.terms[0].term.reward
    held = {p.data_ptr() for p in run.cast.policy.pipeline.transformer.parameters()}
    for network in (run.cast.policy.backbone.network, reward.network.backbone.network):
        own = [name for name, p in network.named_parameters() if p.data_ptr() not in held and "lora_" not in name]
        assert not own, own
    assert run.cast.policy.pipeline.text_encoder is None  # prompts are encoded, what encoded them is gone


def test_the_policys_adapter_never_reaches_the_reward(build) -> None:
    run = build()
    term = run.cast.mixture.terms[0].term
    latents = torch.randn(2, *run._shape, generator=torch.Generator().manual_seed(3))
    text = term.text(PROMPTS[:2])
    before = term.reward.score(latents=latents, conditioning=text).reward
    for parameter in run._parameters.values():
        parameter.data.normal_()
    assert torch.equal(term.reward.score(latents=latents, conditioning=text).reward, before)


def test_micro_batches_add_up_to_the_batch(build, tmp_path) -> None:
    whole, parts = (
        build({"kind": "draft"}, prompts_per_update=size, micro_batches=micro, out=f"{micro}", seed=5)
        for size, micro in ((2, 1), (1, 2))
    )
    noise = whole._batch(0, 0).noise
    for micro in (0, 1):  # the same noise, however it is dealt out
        batch = parts._batch(0, micro)
        assert batch.prompts == whole._batch(0, 0).prompts[micro : micro + 1]
    parts._batch = lambda number, micro: type(batch)(
        whole._batch(0, 0).prompts[micro : micro + 1],
        whole._batch(0, 0).conditioning[micro : micro + 1],
        1,
        noise[micro : micro + 1],
    )
    gradients = []
    for run in (whole, parts):
        run._reward_seeds = lambda batch: (0,) * len(batch)
        run._optimiser.step = lambda run=run: gradients.append([p.grad.clone() for p in run._parameters.values()])
        run.update(0)
    assert len(gradients) == 2  # one step of the optimiser each
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-3)


def test_a_killed_run_that_is_loaded_goes_on_to_the_same_bits(build, tmp_path) -> None:
    from dina_lrm.runtime.snapshots import find_snapshots

    algorithm = {"kind": "nft", "group_size": 2}  # it remembers: its old policy is saved, too
    whole = build(algorithm, out="whole")
    rows = [whole.update(number) for number in range(3)]
    first = build(algorithm, out="parted")
    first.update(0), first.update(1)
    first.save(2, {"seed": 0})
    second = build(algorithm, out="parted")
    second.load(find_snapshots(tmp_path / "parted" / "checkpoints")[-1], {"seed": 0})
    row = second.update(2)
    assert row["loss"] == rows[2]["loss"]
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(whole).items())


def test_a_server_that_comes_back_costs_nothing(build, monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr("dina_lrm.alignment.run.time", clock)
    absences = iter((True, True, False))

    def scorer(pixels, prompts):
        if next(absences, False):
            raise NoAnswerError("nobody there")
        return mean_colour(pixels, prompts)

    plain = build({"kind": "dpo", "group_size": 2}, rewards=(FACTORY,), given={"reward": mean_colour})
    plain.update(0)
    waited = build({"kind": "dpo", "group_size": 2}, rewards=(FACTORY,), given={"reward": scorer})
    with pytest.warns(UserWarning, match=r"the reward is away, asked again for 600 s: nobody there"):
        waited.update(0)
    assert clock.slept == [1.0, 2.0]
    assert all(torch.equal(value, weights(waited)[name]) for name, value in weights(plain).items())


def test_a_server_that_stays_away_ends_the_run_before_anything_moved(build, monkeypatch) -> None:
    monkeypatch.setattr("dina_lrm.alignment.run.time", Clock())

    def away(pixels, prompts):
        raise ConnectionError("refused")

    run = build({"kind": "dpo", "group_size": 2}, rewards=(FACTORY,), given={"reward": away}, reward_patience=20.0)
    before = weights(run)
    with pytest.warns(UserWarning, match="away"), pytest.raises(WorkError, match=r"not answered for 20 s: refused"):
        run.update(0)
    assert all(torch.equal(value, weights(run)[name]) for name, value in before.items())


def test_updates_without_any_reward_teach_nothing_and_then_end(build) -> None:
    run = build(
        {"kind": "dpo", "group_size": 2},
        rewards=({"kind": "factory", "make": "tests.alignment.tiny:make_nothing"},),
        max_failed_updates=2,
    )
    before = weights(run)
    with pytest.warns(UserWarning, match="failed for all 4 samples"):
        row = run.update(0)
    assert row["judged"] == 0 and all(torch.equal(value, weights(run)[name]) for name, value in before.items())
    with (
        pytest.warns(UserWarning, match="failed for all"),
        pytest.raises(WorkError, match="2 updates in a row.*out of order"),
    ):
        run.update(1)


def test_failures_are_counted_once_an_update(build) -> None:
    nothing = ({"kind": "factory", "make": "tests.alignment.tiny:make_nothing"},)
    run = build({"kind": "dpo", "group_size": 2, "passes": 3}, rewards=nothing, max_failed_updates=2)
    with pytest.warns(UserWarning, match="failed for all"):
        row = run.update(0)  # three steps of the optimiser, one failure
    assert math.isnan(row["reward/reward"]) and row["judged"] == 0
    with pytest.warns(UserWarning, match="failed for all"), pytest.raises(WorkError, match="2 updates in a row"):
        run.update(1)


def test_a_failure_says_whether_the_policy_has_moved(build, monkeypatch) -> None:
    run = build({"kind": "dpo", "group_size": 2, "passes": 2})
    step, taken = run._optimiser.step, []

    def once() -> None:
        taken.append(step())
        for parameter in run._parameters.values():
            parameter.data.fill_(math.nan)

    monkeypatch.setattr(run._optimiser, "step", once)
    with pytest.raises(DivergedError, match="update 1 diverged.*under another out"):
        run.update(0)
    assert run.moved and len(taken) == 1


def test_a_step_level_update_may_normalise_over_its_candidates(build) -> None:
    row = build({"kind": "step_dpo", "candidates": 3}, normalise="group").update(0)
    assert row["pairs"] > 0 and row["gap"] > 0 and row["grad_norm"] > 0


def test_some_rewards_that_fail_are_left_out(build) -> None:
    calls = itertools.count()

    def scorer(pixels, prompts):
        found = mean_colour(pixels, prompts)
        return torch.where(torch.arange(len(found)) == next(calls) % 2, math.nan, found)

    run = build({"kind": "flow_grpo", "group_size": 4}, rewards=(FACTORY,), given={"reward": scorer})
    row = run.update(0)
    assert row["judged"] == 7 / 8 and math.isfinite(row["loss"]) and math.isfinite(row["reward"])


@pytest.mark.parametrize("name", ["refl", "nft", "step_dpo"])
def test_a_dealt_out_reward_that_fails_ends_the_run_and_is_not_asked_again(build, monkeypatch, name) -> None:
    run = build(ALGORITHMS[name])
    network, asked = run.cast.readers[0], []

    def full(*_):
        asked.append(1)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(network, "forward", full)
    network.dealt_out = True
    with pytest.raises(WorkError, match=r"several processes hold together failed: OutOfMemoryError\('no room'\)"):
        run.update(0)
    assert len(asked) == 1  # the others wait for no second question


def test_a_dealt_out_reward_is_asked_for_all_samples_whatever_they_are(build) -> None:
    run = build()
    term, latents = run.cast.mixture.terms[0].term, torch.randn(3, *run._shape)
    latents[1] = math.nan
    samples = Finished(latents, PROMPTS, run.cast.policy.backbone.decode_latents, (0, 0, 0))
    alone = term(samples)
    run.cast.readers[0].dealt_out = True
    together = term(samples)
    assert alone.valid.tolist() == together.valid.tolist() == [True, False, True]
    assert torch.allclose(alone.reward, together.reward, atol=1e-6)


def test_what_is_given_for_a_latent_reward_must_be_one(build) -> None:
    with pytest.raises(
        ConfigError, match="reward reward is of kind latent, so a RewardModel is to be given, got object"
    ):
        build(given={"reward": object()})


def test_a_loss_that_is_not_finite_ends_the_run(build, monkeypatch) -> None:
    run = build()

    def nan(mixture, samples, ask):
        return Verdict(Judged(samples.latents.flatten(1).sum(1) * math.nan, torch.ones(2).bool()), {})

    monkeypatch.setattr(type(run.cast.mixture), "__call__", nan)
    with pytest.raises(WorkError, match="update 1 diverged"):
        run.update(0)


def test_a_reward_without_gradient_is_refused_where_one_is_climbed(build) -> None:
    blind = ({**FACTORY, "differentiable": False},)
    with pytest.raises(ConfigError, match="refl climbs the reward's gradient, and none passes through reward"):
        build({"kind": "refl"}, rewards=blind)
    with pytest.raises(ConfigError, match="step_dpo judges noised states, which reward cannot read"):
        build({"kind": "step_dpo"}, rewards=(FACTORY,))


def test_a_reward_of_another_family_is_refused_and_both_are_named(world, tmp_path) -> None:
    flux = build_pipeline("flux", tmp_path / "flux")
    config = configured(world, tmp_path / "run", base=str(flux))
    with pytest.raises(
        BaseMismatchError, match=r"reward .*does not read what the generator .*flux.* draws: .*SD3Transformer"
    ):
        AlignRun(config, create_accelerator(device="cpu"))


def test_a_reward_of_another_latent_space_is_refused(world, tmp_path) -> None:
    import json

    from dina_lrm.scoring import RewardModel

    other = build_pipeline("sd35", tmp_path / "other")
    settings = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.5}))
    given = {"reward": RewardModel.from_pretrained(world / "reward")}
    with pytest.raises(DataError, match=r"generator .*other.* VAE scaling_factor 0\.5, but the model stands on .*base"):
        AlignRun(configured(world, tmp_path / "run", base=str(other)), create_accelerator(device="cpu"), given)


def test_prompts_that_are_no_prompts_are_refused(world, tmp_path) -> None:
    path = tmp_path / "prompts.txt"

    def run_with(text: str, **changes) -> None:
        path.write_text(text)
        config = configured(world, tmp_path / "run", prompts={"kind": "file", "path": path}, **changes)
        AlignRun(config, create_accelerator(device="cpu"))

    with pytest.raises(DataError, match="holds no prompts"):
        run_with("\n\n")
    with pytest.raises(DataError, match=r"1 of 2 prompts are longer than the generator reads.*cut_prompts=true"):
        run_with("short\n" + "word " * 200)
    with pytest.warns(UserWarning, match="longer than"):
        run_with("word " * 200, cut_prompts=True)


def test_sides_that_the_base_does_not_take_are_refused(build) -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        build(sampler={"num_steps": 4, "guidance": 1.0, "height": 60, "width": 64})


def test_a_local_model_is_read_with_its_own_words(build) -> None:
    term = build().cast.mixture.terms[0].term
    assert isinstance(term, LatentTerm) and term.differentiable
    own = term.text(PROMPTS[:1]).prompt_embeds.shape[1]
    policy = build().cast.text(PROMPTS[:1]).prompt_embeds.shape[1]
    assert own != policy  # the reward's max_sequence_length is 24, the policy's 32
