"""What every reward function must show, whoever answers: derive from `RewardFunctionSuite` and give it a `function`.

The model behind the function is the golden one; `model` is the same in this process, and says which numbers are right.
"""

from __future__ import annotations

import inspect
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dina_lrm import errors
from dina_lrm.errors import ConfigError, DinaError, InputError, PromptCutWarning, ShapeError, ValueRangeError
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


# A base that cannot be had is the server's own trouble, and worth another try.
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, InputError) and kind is not errors.BaseUnavailableError
]
ONE = torch.zeros(1, 16, 16, 16)
THREE = torch.zeros(3, 16, 16, 16)
ALIKE = dict(latents=ONE, prompts=["a"])
WRONG = [
    ({}, ShapeError, "either images or latents"),
    (dict(latents=ONE), ShapeError, "either prompts or conditioning"),
    (dict(latents=THREE, prompts=["a", "b"]), ShapeError, "need 1 or 3 prompts, got 2"),
    (dict(latents=THREE, prompts=["a"], seed=[1, 2]), ShapeError, "need one seed or 3, got 2"),
    (dict(latents=ONE, prompts=[]), ValueRangeError, r"prompts.*\[\]"),
    (dict(latents=ONE, prompts="a cat"), ValueRangeError, "prompts.*'a cat'"),
    (dict(latents=ONE, prompts=[None]), ValueRangeError, "prompts.*None"),
    (dict(latents=torch.zeros(1, 8, 16, 16), prompts=["a"]), ShapeError, r"\[b 16 h w\].*8, 16, 16"),
    (dict(latents=torch.zeros(1, 16, 15, 16), prompts=["a"]), ShapeError, "multiples of 2.*15"),
    (dict(latents=torch.zeros(0, 16, 16, 16), prompts=["a"]), ShapeError, r"one sample or more, got \[0"),
    (dict(latents=torch.zeros(16, 16, 16), prompts=["a"]), ShapeError, r"\[b c h w\].*\[16, 16, 16\]"),
    (dict(latents=torch.full((1, 16, 16, 16), math.nan), prompts=["a"]), ValueRangeError, "latents.*not finite"),
    (dict(**ALIKE, sigmas=(1.5,)), ValueRangeError, "sigmas.*1.5"),
    (dict(**ALIKE, sigmas=()), ValueRangeError, r"sigmas.*\(\)"),
    (dict(**ALIKE, sigmas=0.4), ValueRangeError, "sigmas.*0.4"),
    (dict(**ALIKE, draws=0), ValueRangeError, "draws.*0"),
    (dict(**ALIKE, draws=3, antithetic=True), ValueRangeError, "pairs.*3"),
    (dict(**ALIKE, draws=Adaptive(9)), ValueRangeError, "standard_error.*none"),
    (dict(**ALIKE, seed=-1), ValueRangeError, "seed.*-1"),
    (dict(**ALIKE, seed=1.5), ValueRangeError, "seed.*1.5"),
    (dict(**ALIKE, fusion="sum"), ConfigError, "fusion.*'sum'"),
    (dict(**ALIKE, noise=torch.zeros(1, 16, 8, 8)), ShapeError, r"noise.*\[1, 16, 16, 16\].*got \[1, 16, 8, 8\]"),
    (dict(**ALIKE, noise=ONE, draws=2), ShapeError, "noise.*draws=2"),
    (dict(**ALIKE, noise=torch.full_like(ONE, math.inf)), ValueRangeError, "noise.*not finite"),
    (dict(images=torch.zeros(1, 4, 64, 64), prompts=["a"]), ShapeError, r"3 y x.*\[1, 4, 64, 64\]"),
    (dict(images=torch.full((1, 3, 64, 64), 2.0), prompts=["a"]), ValueRangeError, "pixels.*2"),
    (dict(images=torch.zeros(1, 3, 60, 64), prompts=["a"]), ShapeError, "60"),
    (dict(images=["cat.png"], prompts=["a"]), ShapeError, "PIL pictures.*cat.png"),
    (dict(images=[], prompts=["a"]), ShapeError, "one or more pictures"),
    (dict(latents=ONE, conditioning=Conditioning(torch.zeros(1, 7, 5))), ShapeError, "width"),
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


class AnswerSuite:
    """The numbers are those of the model, whatever it says of itself: under a calibration too."""

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

    @pytest.mark.parametrize("look", LOOKS, ids=str)
    def test_latents_score_as_the_model_scores_them(self, function, model, latents, text, look) -> None:
        ask = dict(conditioning=text, latents=latents, **look)
        agree(function.score(**ask), model.score(**ask))

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

    def test_the_best_are_a_ranking_that_is_cut(self, function, model, latents, text) -> None:
        ask = dict(conditioning=text[:1], latents=latents, draws=2)
        ours, theirs = function.best_of(2, **ask), model.rank(**ask)
        assert ours.order == theirs.order[:2] and ours.decided == theirs.decided
        agree(ours.reward, theirs.reward)

    def test_pictures_are_ranked_and_one_alone_leads_nobody(self, function, model) -> None:
        pictures = [picture(place) for place in range(3)]
        ours, theirs = (one.rank(prompt="a cat", images=pictures) for one in (function, model))
        assert ours.order == theirs.order
        assert function.rank(prompt="a cat", images=pictures[:1]).lead is None


class RewardFunctionSuite(AnswerSuite):
    """Every reward function passes these."""

    def test_it_takes_what_the_protocol_names(self, function) -> None:
        for name in ("score", "score_state", "compare", "rank", "best_of"):
            method = getattr(type(function), name)
            protocol, own = inspect.signature(getattr(RewardFunction, name)), inspect.signature(method)
            assert own.return_annotation == protocol.return_annotation, name
            assert method.__qualname__ == f"{type(function).__name__}.{name}"
            wanted, taken = protocol.parameters, own.parameters
            assert set(wanted) <= set(taken), name
            assert all(taken[one].default == wanted[one].default for one in wanted), name

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

    def test_a_prompt_that_is_cut_is_told_of_each_time(self, function) -> None:
        long, pictures = "far too long " * 200, [picture(1), picture(2)]
        asks = [
            lambda: function.score(prompts=["a", long], images=pictures),
            lambda: function.compare(prompt=long, a=pictures[0], b=pictures[1]),
            lambda: function.rank(prompt=long, images=pictures),
        ]
        with pytest.warns(PromptCutWarning, match="prompt 'far too long"):
            asks[0]()  # a server in this process says so too, until it remembers the prompt
        for ask in asks:
            with pytest.warns(PromptCutWarning, match="prompt 'far too long") as told:
                ask()
            assert len(told) == 1

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

    @pytest.mark.parametrize(("ask", "kind", "message"), WRONG)
    def test_what_is_wrong_is_the_models_error_with_a_sentence(self, function, model, ask, kind, message) -> None:
        for one in (model, function):
            with pytest.raises(InputError, match=message) as told:
                one.score(**ask)
            assert type(told.value) is kind, one

    @pytest.mark.parametrize(
        ("verb", "look", "kind", "message"),
        [
            ("compare", dict(tie_band=0.7), ValueRangeError, "tie_band.*0.7"),
            ("compare", dict(seed=1.5), ValueRangeError, "whole number.*1.5"),
            ("compare", dict(sigmas=(0.4, -0.1)), ValueRangeError, "sigmas.*-0.1"),
            ("compare", dict(fusion="sum"), ConfigError, "fusion.*'sum'"),
            ("rank", dict(tie_band=0.5), ValueRangeError, "tie_band.*0.5"),
            ("rank", dict(draws=3, antithetic=True), ValueRangeError, "even, got 3"),
            ("best_of", dict(k=4), ValueRangeError, r"1\.\.3, the number of candidates, got 4"),
            ("best_of", dict(k=0), ValueRangeError, "got 0"),
        ],
    )
    def test_wrong_comparisons_and_rankings_too(
        self, function, model, latents, text, verb, look, kind, message
    ) -> None:
        of = dict(a=latents[0], b=latents[1]) if verb == "compare" else dict(latents=latents)
        for one in (model, function):
            with pytest.raises(InputError, match=message) as told:
                getattr(one, verb)(conditioning=text[:1], **of, **look)
            assert type(told.value) is kind, one

    def test_wrong_states_and_pairs_too(self, function, model, latents, text) -> None:
        for one in (model, function):
            with pytest.raises(ValueRangeError, match=r"sigma must lie in \[0, 1\], got 1.5"):
                one.score_state(NoisedState(latents, torch.full((3,), 1.5)), text)
            with pytest.raises(ShapeError, match="1 or 3 prompts, got 2"):
                one.score_state(NoisedState(latents, torch.full((3,), 0.5)), text[:2])
            with pytest.raises(ShapeError, match="both be pictures, or tensors"):
                one.compare(prompt="a cat", a=latents[0], b=picture(0))

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_whatever_the_model_refuses_keeps_its_class_and_words(
        self, function, model, latents, kind, monkeypatch
    ) -> None:
        def refuse(*_: object) -> Conditioning:
            raise kind("the prompt is 7, and 5 is read")

        monkeypatch.setattr(type(model.network.backbone), "encode_prompts", refuse)
        for one in (model, function):
            with pytest.raises(InputError, match="^the prompt is 7, and 5 is read$") as told:
                one.score(prompts=[f"a prompt of nobody else, {kind.__name__}"], latents=latents)
            assert type(told.value) is kind, one

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
