"""What every reward function must show, whoever answers: derive from `RewardFunctionSuite` and give it a `function`.

The model behind the function is the golden one; `model` is the same in this process, and says which numbers are right.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dina_lrm.errors import DinaError, InputError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward

EXACT = dict(atol=1e-5, rtol=0)
LOOKS = [
    {},
    dict(sigmas=(0.2, 0.5, 0.7), fusion="tokens"),
    dict(sigmas=(0.2, 0.7), draws=3, fusion="weighted", seed=5),
    dict(sigmas=(0.4,), draws=4, antithetic=True, seed=2**62),
    dict(sigmas=(0.0, 1.0), draws=2, seed=[1, 2, 3]),
    dict(draws=Adaptive(max_draws=6, standard_error=0.02)),
]


def agree(ours: Reward, theirs: Reward) -> None:
    """Two rewards are one but for rounding."""
    for name in ("reward", "utility", "utility_std", "standard_error", "draws", "sigmas"):
        left, right = getattr(ours, name), getattr(theirs, name)
        assert left.shape == right.shape and left.dtype == right.dtype == torch.float32, name
        assert torch.allclose(left, right, equal_nan=True, **EXACT), name
    assert torch.equal(ours.spent, theirs.spent) and ours.seed == theirs.seed


def picture(seed: int, width: int = 64, height: int = 64, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode) if mode == "RGB" else Image.fromarray(values)


class RewardFunctionSuite:
    """Every reward function passes these."""

    @pytest.fixture
    def function(self) -> RewardFunction:
        pytest.fail("a suite needs a function: override this fixture")

    @pytest.fixture
    def model(self, golden_model: RewardModel) -> RewardModel:
        return golden_model

    @pytest.fixture
    def latents(self, cases) -> torch.Tensor:
        return cases["0.latents"]

    @pytest.fixture
    def text(self, golden_conditioning) -> Conditioning:
        return golden_conditioning

    def test_it_takes_what_the_protocol_names(self, function) -> None:
        for name in ("score", "score_state", "compare", "rank"):
            wanted = inspect.signature(getattr(RewardFunction, name)).parameters
            taken = inspect.signature(getattr(type(function), name)).parameters
            assert set(wanted) <= set(taken), name
            assert all(taken[one].default == wanted[one].default for one in wanted), name

    @pytest.mark.parametrize("look", LOOKS, ids=str)
    def test_latents_score_as_the_model_scores_them(self, function, model, latents, text, look) -> None:
        ask = dict(conditioning=text, latents=latents, **look)
        agree(function.score(**ask), model.score(**ask))

    def test_a_reward_is_a_record_on_the_cpu_without_a_graph(self, function, latents, text) -> None:
        with torch.no_grad():
            reward = function.score(conditioning=text, latents=latents)
        assert isinstance(reward, Reward) and len(reward) == 3
        assert reward.reward.device.type == "cpu" and not reward.reward.requires_grad
        assert reward.spent.dtype == torch.int64 and reward.seed == 0

    def test_the_same_request_gives_the_same_bits(self, function, latents, text) -> None:
        ask = dict(conditioning=text, latents=latents, sigmas=(0.2, 0.6), draws=2, seed=7)
        first, second = function.score(**ask), function.score(**ask)
        assert torch.equal(first.draws, second.draws) and torch.equal(first.reward, second.reward)
        assert not torch.equal(first.draws, function.score(**{**ask, "seed": 8}).draws)

    @pytest.mark.parametrize("fusion", ["mean", "tokens"])
    def test_a_sample_scores_the_same_alone_and_among_others(self, function, latents, text, fusion) -> None:
        look = dict(sigmas=(0.2, 0.6), draws=2, fusion=fusion, seed=3)
        together = function.score(conditioning=text, latents=latents, **look)
        for place in range(3):
            one = slice(place, place + 1)
            alone = function.score(conditioning=text[one], latents=latents[one], **look)
            assert torch.allclose(alone.draws, together.draws[one], **EXACT)

    def test_seeds_belong_to_samples(self, function, latents, text) -> None:
        together = function.score(conditioning=text, latents=latents, seed=[7, 8, 9])
        alone = function.score(conditioning=text[1:2], latents=latents[1:2], seed=8)
        assert torch.allclose(alone.draws, together.draws[1:2], **EXACT) and together.seed == (7, 8, 9)

    def test_prompts_in_words_and_encoded_are_one(self, function, model, latents, case_settings, text) -> None:
        prompts = case_settings["prompts"]
        in_words = function.score(prompts=prompts, latents=latents)
        agree(in_words, model.score(conditioning=text, latents=latents))
        agree(function.score(prompts=prompts[:1], latents=latents), model.score(prompts=prompts[:1], latents=latents))

    def test_pictures_of_any_size_and_mode(self, function, model) -> None:
        pictures = [picture(0), picture(1, 100, 48), picture(2, mode="RGBA"), picture(3).convert("L")]
        ask = dict(prompts=["a cat", "a dog", "a fish", ""], images=pictures, draws=2, seed=[1, 2, 3, 4])
        agree(function.score(**ask), model.score(**ask))

    def test_pixels_as_they_are(self, function, model, text) -> None:
        pixels = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        agree(function.score(conditioning=text, images=pixels), model.score(conditioning=text, images=pixels))

    def test_half_precision_latents_are_taken(self, function, model, latents, text) -> None:
        half = latents.to(torch.bfloat16)
        agree(function.score(conditioning=text, latents=half), model.score(conditioning=text, latents=half))

    def test_a_state_is_scored_as_it_stands(self, function, model, cases, latents, text) -> None:
        for sigma in (torch.full((3,), 0.5), torch.tensor([0.1, 0.5, 1.0])):
            state = NoisedState(latents + cases["0.noise"], sigma)
            ours, theirs = function.score_state(state, text), model.score_state(state, text)
            agree(ours, theirs)
            assert ours.seed is None and len(ours.sigmas) == len(set(sigma.tolist()))
        one = NoisedState(latents, torch.full((3,), 0.5))
        agree(function.score_state(one, text[:1]), model.score_state(one, text[:1]))

    @pytest.mark.parametrize(
        "look",
        [{}, dict(sigmas=(0.2, 0.5), draws=2, fusion="tokens", seed=3), dict(draws=Adaptive(9)), dict(tie_band=0.3)],
    )
    def test_comparisons_are_the_models(self, function, model, latents, text, look) -> None:
        ask = dict(conditioning=text[:1], a=latents[0], b=latents[1], **look)
        ours, theirs = function.compare(**ask), model.compare(**ask)
        assert isinstance(ours, Comparison) and ours.verdict == theirs.verdict
        for name in ("probability", "interval", "margin", "reward_a", "reward_b"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-5), name
        assert (ours.decided, ours.spent, ours.tie_band) == (theirs.decided, theirs.spent, theirs.tie_band)

    def test_comparing_the_other_way_round_gives_the_rest(self, function) -> None:
        a, b = picture(0), picture(1)
        there, back = function.compare(prompt="a cat", a=a, b=b), function.compare(prompt="a cat", a=b, b=a)
        assert there.probability == pytest.approx(1 - back.probability, abs=1e-5)
        assert function.compare(prompt="a cat", a=a, b=a).verdict == "tie"
        pixels = torch.rand(3, 64, 64)
        assert function.compare(prompt="a cat", a=pixels, b=pixels).probability == pytest.approx(0.5, abs=1e-6)

    @pytest.mark.parametrize("look", [{}, dict(sigmas=(0.2, 0.5), draws=2, seed=3), dict(draws=Adaptive(9))])
    def test_rankings_are_the_models(self, function, model, latents, text, look) -> None:
        ask = dict(conditioning=text[:1], latents=latents, **look)
        ours, theirs = function.rank(**ask), model.rank(**ask)
        assert isinstance(ours, Ranking) and ours.order == theirs.order and ours.decided == theirs.decided
        agree(ours.reward, theirs.reward)
        assert ours.lead is not None and theirs.lead is not None
        assert ours.lead.probability == pytest.approx(theirs.lead.probability, abs=1e-5)

    def test_pictures_are_ranked_and_one_alone_leads_nobody(self, function, model) -> None:
        pictures = [picture(place) for place in range(3)]
        ours, theirs = (one.rank(prompt="a cat", images=pictures) for one in (function, model))
        assert ours.order == theirs.order
        assert function.rank(prompt="a cat", images=pictures[:1]).lead is None

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            ({}, "either images or latents"),
            ({"latents": torch.zeros(1, 16, 16, 16)}, "either prompts or conditioning"),
            ({"latents": torch.zeros(3, 16, 16, 16), "prompts": ["a", "b"]}, "need 1 or 3 prompts, got 2"),
            ({"latents": torch.zeros(3, 16, 16, 16), "prompts": ["a"], "seed": [1, 2]}, "need one seed or 3, got 2"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": []}, "prompts"),
            ({"latents": torch.zeros(1, 8, 16, 16), "prompts": ["a"]}, r"\[b 16 h w\]"),
            ({"latents": torch.zeros(1, 16, 15, 16), "prompts": ["a"]}, "multiples of 2"),
            ({"latents": torch.zeros(0, 16, 16, 16), "prompts": ["a"]}, "one sample or more"),
            ({"latents": torch.full((1, 16, 16, 16), float("nan")), "prompts": ["a"]}, "not finite"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "sigmas": (1.5,)}, "sigmas"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "sigmas": ()}, "sigmas"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "draws": 0}, "draws"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "draws": 3, "antithetic": True}, "pairs"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "draws": Adaptive(9)}, "standard_error"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "seed": -1}, "seed"),
            ({"latents": torch.zeros(1, 16, 16, 16), "prompts": ["a"], "fusion": "sum"}, "fusion"),
            ({"images": torch.zeros(1, 4, 64, 64), "prompts": ["a"]}, "3 y x"),
            ({"images": ["cat.png"], "prompts": ["a"]}, "PIL pictures"),
            ({"images": [], "prompts": ["a"]}, "one or more pictures"),
            ({"latents": torch.zeros(1, 16, 16, 16), "conditioning": Conditioning(torch.zeros(1, 7, 5))}, "width"),
        ],
    )
    def test_what_is_wrong_is_an_input_error_with_a_sentence(self, function, ask, message) -> None:
        with pytest.raises(InputError, match=message):
            function.score(**ask)

    def test_wrong_states_and_comparisons_too(self, function, latents, text) -> None:
        with pytest.raises(InputError, match=r"sigma must lie in \[0, 1\]"):
            function.score_state(NoisedState(latents, torch.full((3,), 1.5)), text)
        with pytest.raises(InputError, match="1 or 3 prompts, got 2"):
            function.score_state(NoisedState(latents, torch.full((3,), 0.5)), text[:2])
        with pytest.raises(InputError, match="both be pictures, or tensors"):
            function.compare(prompt="a cat", a=latents[0], b=picture(0))
        with pytest.raises(InputError, match="tie_band"):
            function.compare(prompt="a cat", a=latents[0], b=latents[1], tie_band=0.7)

    def test_a_failure_is_never_a_number(self, function, latents, text) -> None:
        huge = torch.full_like(latents, 3e38)
        try:
            reward = function.score(conditioning=text, latents=huge)
        except DinaError:
            return
        assert torch.isfinite(reward.reward).all()

    def test_a_bad_request_leaves_the_next_one_alone(self, function, model, latents, text) -> None:
        with pytest.raises(InputError):
            function.score(conditioning=text, latents=torch.full_like(latents, float("inf")))
        agree(function.score(conditioning=text, latents=latents), model.score(conditioning=text, latents=latents))

    def test_threads_may_share_it(self, function, model, latents, text) -> None:
        def ask(place: int) -> Reward:
            one = slice(place % 3, place % 3 + 1)
            with torch.no_grad():
                return function.score(conditioning=text[one], latents=latents[one], seed=place)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, range(12)))
        for place, reward in enumerate(found):
            one = slice(place % 3, place % 3 + 1)
            agree(reward, model.score(conditioning=text[one], latents=latents[one], seed=place))
