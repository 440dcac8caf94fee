import math

import pytest
import torch
from PIL import Image

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.scoring import RewardModel
from dina_lrm.types import NoisedState


@pytest.fixture
def latents(cases):
    return cases["0.latents"]


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.2, 0.4, 0.5, 0.7, 0.9])
def test_rewards_agree_with_the_release(golden_model, golden_conditioning, cases, case, sigma):
    reward = golden_model.score(
        conditioning=golden_conditioning,
        latents=cases[f"{case}.latents"],
        noise=cases[f"{case}.noise"],
        sigmas=(sigma,),
    )
    assert torch.allclose(reward.reward, cases[f"{case}.reward.{sigma}"].flatten(), atol=1e-4)


@pytest.mark.parametrize("case", [0, 1])
def test_the_ensemble_agrees_with_the_release(golden_model, golden_conditioning, cases, case):
    reward = golden_model.score(
        conditioning=golden_conditioning,
        latents=cases[f"{case}.latents"],
        noise=cases[f"{case}.noise"],
        sigmas=(0.2, 0.5, 0.7),
        fusion="tokens",
    )
    assert torch.allclose(reward.reward, cases[f"{case}.ensemble"].flatten(), atol=1e-4)


def test_levels_snap_to_the_schedule_of_the_release(golden_model, cases):
    levels = golden_model._snapped(cases["table.u"].tolist())
    assert torch.allclose(torch.tensor(levels), cases["table.sigma"], atol=1e-6)


@pytest.mark.parametrize("fusion", ["mean", "tokens"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(golden_model, golden_conditioning, latents, fusion):
    ask = dict(conditioning=golden_conditioning, latents=latents, sigmas=(0.2, 0.6), draws=2, fusion=fusion)
    a, b = golden_model.score(**ask, seed=5), golden_model.score(**ask, seed=5)
    assert torch.equal(a.reward, b.reward) and torch.equal(a.draws, b.draws)
    assert not torch.equal(a.reward, golden_model.score(**ask, seed=6).reward)


@pytest.mark.parametrize("fusion", ["mean", "tokens"])
def test_alone_in_a_batch_or_in_chunks(golden_model, golden_conditioning, latents, fusion):
    ask = dict(sigmas=(0.2, 0.6), draws=2, fusion=fusion, seed=3)
    together = golden_model.score(conditioning=golden_conditioning, latents=latents, **ask)
    chunked = golden_model.score(conditioning=golden_conditioning, latents=latents, max_batch_size=2, **ask)
    assert torch.allclose(together.reward, chunked.reward, atol=1e-5)
    for i in range(3):
        alone = golden_model.score(conditioning=golden_conditioning[i : i + 1], latents=latents[i : i + 1], **ask)
        assert torch.allclose(alone.reward, together.reward[i : i + 1], atol=1e-5)


def test_own_seeds_are_the_seeds_of_requests_on_their_own(golden_model, golden_conditioning, latents):
    together = golden_model.score(conditioning=golden_conditioning, latents=latents, seed=[7, 8, 9])
    alone = golden_model.score(conditioning=golden_conditioning[1:2], latents=latents[1:2], seed=8)
    assert torch.allclose(together.reward[1:2], alone.reward, atol=1e-5)
    assert together.seed == (7, 8, 9)


def test_a_reward_explains_itself(golden_model, golden_conditioning, latents):
    reward = golden_model.score(conditioning=golden_conditioning, latents=latents, sigmas=(0.25, 0.5), draws=3)
    assert reward.draws.shape == (3, 6) and reward.sigmas.shape == (6,)
    assert torch.allclose(reward.utility, reward.draws.mean(dim=1))
    assert torch.allclose(reward.utility_std, reward.draws.std(dim=1))
    # A draw is one noise at both levels: draws are independent, the levels of a draw are not.
    by_draw = reward.draws.view(3, 3, 2).mean(dim=2)
    assert torch.allclose(reward.standard_error, (by_draw.var(dim=1) / 3).sqrt())
    assert reward.spent.tolist() == [6, 6, 6]
    assert reward.seed == 0 and len(reward) == 3


def test_one_draw_states_the_spread_of_its_law(golden_model, golden_conditioning, latents):
    reward = golden_model.score(conditioning=golden_conditioning, latents=latents, sigmas=(0.4,))
    expected = math.sqrt(2 * reward.sigmas[0].item() ** 2 + 0.05)
    assert torch.allclose(reward.utility_std, torch.full((3,), expected))
    assert torch.allclose(reward.standard_error, reward.utility_std)


def test_a_state_is_scored_as_it_stands(golden_model, golden_conditioning, cases, latents):
    sigma = golden_model._snapped([0.4])[0]
    state = golden_model.network.backbone.process.add_noise(latents, cases["0.noise"], torch.full((3,), sigma))
    scored = golden_model.score_state(state, golden_conditioning)
    added = golden_model.score(conditioning=golden_conditioning, latents=latents, noise=cases["0.noise"])
    assert torch.allclose(scored.reward, added.reward, atol=1e-6)


def test_gradients_reach_latents_and_states(golden_model, golden_conditioning, latents):
    clean = latents.clone().requires_grad_()
    golden_model.score(conditioning=golden_conditioning, latents=clean).reward.sum().backward()
    assert clean.grad.abs().sum() > 0
    noised = latents.clone().requires_grad_()
    golden_model.score_state(NoisedState(noised, torch.full((3,), 0.5)), golden_conditioning).reward.sum().backward()
    assert noised.grad.abs().sum() > 0


def test_comparing_the_other_way_round_gives_the_rest(golden_model, latents):
    there = golden_model.compare(prompt="a cat", a=latents[0], b=latents[1])
    back = golden_model.compare(prompt="a cat", a=latents[1], b=latents[0])
    assert there.probability == pytest.approx(1 - back.probability, abs=1e-5)
    assert there.margin == pytest.approx(-back.margin, abs=1e-5)
    assert there.interval[0] <= there.probability <= there.interval[1]
    same = golden_model.compare(prompt="a cat", a=latents[0], b=latents[0])
    assert same.probability == pytest.approx(0.5, abs=1e-6)


def test_a_ranking_puts_the_best_first(golden_model, latents):
    ranking = golden_model.rank(prompt="a cat", latents=latents)
    assert sorted(ranking.order) == [0, 1, 2]
    assert ranking.reward.reward[list(ranking.order)].diff().le(0).all()


def test_pictures_of_any_size_are_fitted(golden_model):
    pictures = [Image.new("RGB", (301, 200), color) for color in ("red", "blue")]
    latents = golden_model.encode_images(pictures)
    assert latents.shape == (2, 16, 14, 20)
    assert golden_model.score(prompts=["a cat"], images=pictures).reward.shape == (2,)


def test_pictures_of_different_sizes_score_as_they_do_alone(golden_model):
    pictures = [
        Image.new("RGB", size, color) for size, color in [((64, 64), "red"), ((96, 48), "blue"), ((64, 64), "green")]
    ]
    together = golden_model.score(prompts=["a cat", "a dog", "a fish"], images=pictures, seed=[4, 5, 6], draws=2)
    for place, (prompt, seed) in enumerate([("a cat", 4), ("a dog", 5), ("a fish", 6)]):
        alone = golden_model.score(prompts=[prompt], images=[pictures[place]], seed=seed, draws=2)
        assert torch.allclose(together.draws[place], alone.draws[0], atol=1e-5)
    assert together.seed == (4, 5, 6) and len(together.sigmas) == 2
    assert golden_model.compare(prompt="a cat", a=pictures[0], b=pictures[1]).margin != 0
    with pytest.raises(ShapeError, match="64 x 64, 96 x 48"):
        golden_model.encode_images(pictures)
    with pytest.raises(ShapeError, match="noise"):
        golden_model.score(prompts=["a cat"], images=pictures, noise=torch.zeros(3, 16, 8, 8))
    with pytest.raises(ShapeError, match="3 samples need one seed or 3, got 2"):
        golden_model.score(prompts=["a cat"], images=pictures, seed=[1, 2])


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ({}, ShapeError, "either images or latents"),
        ({"latents": torch.zeros(1, 16, 16, 16)}, ShapeError, "either prompts or conditioning"),
        (
            {"latents": torch.zeros(3, 16, 16, 16), "prompts": ["a", "b"]},
            ShapeError,
            "3 samples need 1 or 3 prompts, got 2",
        ),
        ({"latents": torch.zeros(1, 16, 16, 16), "prompts": []}, ValueRangeError, "prompts"),
        ({"latents": torch.zeros(1, 8, 16, 16), "prompts": ["a"]}, ShapeError, r"\[b 16 h w\]"),
        ({"latents": torch.zeros(0, 16, 16, 16), "prompts": ["a"]}, ShapeError, "one sample or more"),
        ({"latents": torch.full((1, 16, 16, 16), float("nan")), "prompts": ["a"]}, ValueRangeError, "not finite"),
        ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "sigmas": (1.5,)}, ValueRangeError, "sigmas"),
        ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "seed": -1}, ValueRangeError, "seed"),
        ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "fusion": "sum"}, ConfigError, "fusion"),
        (
            {"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "max_batch_size": 0},
            ValueRangeError,
            "max_batch_size",
        ),
        (
            {"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "noise": torch.zeros(2, 16, 16, 16)},
            ShapeError,
            "noise must have the shape",
        ),
    ],
)
def test_bad_requests_are_refused_by_value(golden_model, ask, error, message):
    with pytest.raises(error, match=message):
        golden_model.score(**ask)


def test_saving_and_loading_keeps_every_bit_of_a_score(golden_model, golden_conditioning, latents, tmp_path):
    golden_model.save_pretrained(tmp_path / "model")
    again = RewardModel.from_pretrained(tmp_path / "model", base=str(golden_model.network.backbone.base))
    ask = dict(conditioning=golden_conditioning, latents=latents, seed=1)
    assert torch.equal(again.score(**ask).reward, golden_model.score(**ask).reward)
