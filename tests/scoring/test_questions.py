"""Questions on a made-up network, whose utilities are known, and on the tiny published model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.noise import Adaptive, NoiseEnsemble, RectifiedFlow, seeded_noise
from dina_lrm.preference import Calibration, CalibrationLevel, Thurstone
from dina_lrm.scoring.questions import Asker, Candidates, Part, Question, Reading, answer_all
from dina_lrm.types import Comparison, Conditioning, NoisedState, Spread

SHAPE = (2, 4, 4)
T = TypeVar("T")


def asker(calibration: Calibration | None = None) -> Asker:
    return Asker(RectifiedFlow(), Thurstone(), calibration or Calibration(), list, add_noise=True)


def candidates(worths: list[float], seed: int | tuple[int, ...] = 0) -> Candidates:
    """Latents that are flat at their worth."""
    latents = torch.tensor(worths).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()
    return Candidates((Part(torch.arange(len(worths)), latents),), Conditioning(torch.zeros(1, 3, 4)), seed)


def mean_of_state(reading: Reading) -> torch.Tensor:
    """The mean of what is seen, twice for a joined pair as once: worth and noise, at every level."""
    return reading.state.noised_latents.flatten(1).mean(dim=1).view(-1, reading.joined).mean(dim=1)


def answer(
    question: Question[T], utility: Callable[[Reading], torch.Tensor] = mean_of_state
) -> tuple[T, list[Reading]]:
    read = []
    try:
        reading = next(question)
        while True:
            read.append(reading)
            reading = question.send(utility(reading))
    except StopIteration as done:
        return done.value, read


def test_readings_of_one_key_join_and_part_again():
    question = asker().score(candidates([1.0, 2.0]), NoiseEnsemble((0.2, 0.4), 2, "tokens"))
    reading = next(question)
    assert (len(reading), len(reading.rows), reading.joined) == (4, 8, 2)
    both = Reading.cat([reading, reading[1:3]])
    assert both.key == reading.key and len(both) == 6
    assert torch.equal(both[4:6].state.noised_latents, reading[1:3].state.noised_latents)
    assert both.rows.tolist() == [0] * 8 + [1] * 4
    other = next(asker().score(candidates([1.0]), NoiseEnsemble()))
    assert other.key != reading.key


def test_weighted_levels_count_by_their_certainty():
    ensemble = NoiseEnsemble((0.0, 0.5), 1, "weighted")
    reward, _ = answer(asker().score(candidates([1.0]), ensemble))
    clean, noised = reward.draws[0].tolist()
    weight = (1 / 0.05) / (1 / 0.05 + 1 / 0.55)
    assert reward.utility.item() == pytest.approx(weight * clean + (1 - weight) * noised)


def test_an_antithetic_pair_cancels_what_is_linear_in_the_noise():
    reward, (reading,) = answer(asker().score(candidates([1.0]), NoiseEnsemble((0.5,), 4, antithetic=True)))
    assert reward.utility.item() == pytest.approx(0.5, abs=1e-6)
    assert reward.standard_error.item() == pytest.approx(0, abs=1e-6)
    noise = (reading.state.noised_latents - 0.5) / 0.5
    assert torch.allclose(noise[0], -noise[1], atol=1e-6)
    assert torch.allclose(noise[2], seeded_noise(SHAPE, 0, 2)[1], atol=1e-6)
    with pytest.raises(ValueRangeError, match="must be even, got 3"):
        NoiseEnsemble((0.5,), 3, antithetic=True)


@pytest.mark.parametrize(("ahead", "passes"), [(1, [2, 2, 2]), (3, [2, 2, 2]), (5, [4, 2]), (9, [6])])
def test_states_made_ahead_part_no_antithetic_pair(ahead, passes):
    few = replace(asker(), states_ahead=ahead)
    _, read = answer(few.score(candidates([1.0]), NoiseEnsemble((0.5,), 6, antithetic=True)))
    assert [len(reading) for reading in read] == passes


def test_a_score_is_drawn_until_its_standard_error_is_reached():
    def noisy_second(reading: Reading) -> torch.Tensor:
        seen = mean_of_state(reading)
        return torch.where(seen > 0.8, 10 * seen, seen)  # the second candidate moves ten times as far

    ensemble = NoiseEnsemble((0.5,), Adaptive(40, standard_error=0.2))
    reward, read = answer(asker().score(candidates([1.0, 4.0]), ensemble), noisy_second)
    first, second = reward.spent.tolist()
    assert first == 3 < second <= 40
    assert reward.draws.isnan().sum(dim=1).tolist() == [second - first, 0]
    assert reward.standard_error.max() <= 0.2 or second == 40
    assert reward.utility[0].item() == pytest.approx(reward.draws[0, :3].mean().item(), abs=1e-6)
    assert sum(len(reading.rows) for reading in read) == first + second
    alone, _ = answer(asker().score(candidates([1.0]), ensemble), noisy_second)
    assert alone.utility[0].item() == pytest.approx(reward.utility[0].item(), abs=1e-6)


def test_an_adaptive_score_must_be_told_what_to_reach():
    with pytest.raises(ValueRangeError, match="standard_error"):
        answer(asker().score(candidates([1.0]), NoiseEnsemble(draws=Adaptive())))


def test_a_clear_comparison_costs_less_than_an_unclear_one():
    ensemble = NoiseEnsemble((0.5,), Adaptive(12))
    clear, read = answer(asker().compare(candidates([9.0, 0.0], seed=(1, 2)), ensemble, 0.05))
    assert clear.decided and clear.verdict == "a" and clear.spent < 24
    assert clear.spent == sum(len(reading.rows) for reading in read)
    unclear, _ = answer(asker().compare(candidates([1.0, 1.01], seed=(1, 2)), ensemble, 0.0))
    assert (unclear.spent, unclear.decided) == (24, False)


def test_equals_are_a_tie_and_known_early():
    ensemble = NoiseEnsemble((0.5,), Adaptive(12))
    tie, _ = answer(asker().compare(candidates([1.0, 1.0]), ensemble, 0.05))
    assert (tie.verdict, tie.decided, tie.spent) == ("tie", True, 4)
    assert tie.probability == pytest.approx(0.5)
    wide, _ = answer(asker().compare(candidates([1.0, 1.1], seed=(1, 2)), ensemble, 0.4))
    assert wide.verdict == "tie" and wide.decided and wide.spent < 24


def test_swapping_a_comparison_negates_it():
    ensemble = NoiseEnsemble((0.3, 0.5), 3)
    there, _ = answer(asker().compare(candidates([1.0, 1.4], seed=(1, 2)), ensemble, 0.05))
    back, _ = answer(asker().compare(candidates([1.4, 1.0], seed=(2, 1)), ensemble, 0.05))
    assert there.margin == pytest.approx(-back.margin, abs=1e-6)
    assert there.interval == pytest.approx((1 - back.interval[1], 1 - back.interval[0]), abs=1e-6)


def test_what_calibration_knows_of_the_noise_decides_after_one_draw():
    known = Calibration(levels=(CalibrationLevel(0.5, 0.0, 1.0, Spread(1e-4, math.inf)),))
    found, _ = answer(asker(known).compare(candidates([2.0, 0.0]), NoiseEnsemble((0.5,), Adaptive(9)), 0.05))
    assert (found.decided, found.spent) == (True, 2)


def test_a_ranking_draws_on_for_those_that_may_still_be_best():
    ensemble = NoiseEnsemble((0.5,), Adaptive(12))
    asked = candidates([0.0, 9.0, 8.99, 0.1], seed=(1, 2, 3, 4))
    ranking, _ = answer(asker().rank(asked, ensemble, 0.0))
    spent = ranking.reward.spent.tolist()
    assert set(ranking.order[:2]) == {1, 2}
    assert spent[0] < spent[1] and spent[3] < spent[1] and spent[1] == spent[2]
    assert ranking.lead is not None and ranking.lead.spent == spent[1] + spent[2]
    fixed, _ = answer(asker().rank(asked, NoiseEnsemble((0.5,), 12), 0.0))
    assert fixed.order[0] == ranking.order[0] and fixed.decided
    assert sum(spent) < sum(fixed.reward.spent.tolist())


def test_a_single_candidate_is_the_best():
    for draws in (1, Adaptive(4)):
        ranking, _ = answer(asker().rank(candidates([1.0]), NoiseEnsemble((0.5,), draws), 0.05))
        assert (ranking.order, ranking.lead, ranking.decided) == ((0,), None, True)


def test_candidates_of_two_sizes_are_read_apart_and_answered_in_order():
    small, large = torch.full((2, *SHAPE), 1.0), torch.full((1, 2, 8, 8), 3.0)
    small[1] = 2.0
    parts = (Part(torch.tensor([0, 2]), small), Part(torch.tensor([1]), large))
    asked = Candidates(parts, Conditioning(torch.arange(3.0).view(3, 1, 1).expand(3, 3, 4)), (5, 6, 7))
    reward, read = answer(asker().score(asked, NoiseEnsemble((0.1,), 2)))
    assert [reading.conditioning.prompt_embeds[:, 0, 0].tolist() for reading in read] == [[0, 2], [1]]
    assert reward.utility.tolist() == pytest.approx([0.9, 2.7, 1.8], abs=0.1)
    assert reward.seed == (5, 6, 7)


def test_a_comparison_is_of_two_and_a_band_is_below_half():
    with pytest.raises(ShapeError, match="two candidates, got 3"):
        answer(asker().compare(candidates([1, 2, 3]), NoiseEnsemble(), 0.05))
    with pytest.raises(ValueRangeError, match=r"tie_band .* got 0.5"):
        answer(asker().compare(candidates([1, 2]), NoiseEnsemble(), 0.5))


def test_many_questions_share_passes_and_answer_as_alone():
    def questions() -> list[Question[Comparison]]:
        pairs = [candidates([float(i), 1.0], seed=(i, i + 50)) for i in range(6)]
        return [asker().compare(pair, NoiseEnsemble((0.5,), Adaptive(8)), 0.05) for pair in pairs]

    sizes = []

    def read(reading: Reading) -> torch.Tensor:
        sizes.append(len(reading.rows))
        return mean_of_state(reading)

    together = answer_all(questions(), read, 10)
    assert together == [answer(question)[0] for question in questions()]
    assert max(sizes) <= 10 and len(sizes) < sum(found.spent for found in together) / 4
    assert sum(sizes) == sum(found.spent for found in together)


@pytest.mark.parametrize("fusion", ["mean", "tokens", "weighted"])
def test_gradients_are_the_same_with_less_memory(golden_model, golden_conditioning, cases, fusion):
    ask = dict(conditioning=golden_conditioning, sigmas=(0.2, 0.6), draws=2, fusion=fusion, max_batch_size=2)
    gradients = []
    for gradient_checkpointing in (False, True):
        latents = cases["0.latents"].clone().requires_grad_()
        reward = golden_model.score(latents=latents, gradient_checkpointing=gradient_checkpointing, **ask)
        reward.reward.sum().backward()
        gradients.append(latents.grad)
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().sum() > 0


def test_the_best_of_some(golden_model, cases):
    ranking = golden_model.rank(prompt="a cat", latents=cases["0.latents"])
    best = golden_model.best_of(2, prompt="a cat", latents=cases["0.latents"])
    assert best.order == ranking.order[:2]
    with pytest.raises(ValueRangeError, match=r"1\.\.3, the number of candidates, got 4"):
        golden_model.best_of(4, prompt="a cat", latents=cases["0.latents"])


def test_adaptive_answers_of_the_model(golden_model, cases):
    latents = cases["0.latents"]
    asked = dict(prompt="a cat", sigmas=(0.2, 0.5), draws=Adaptive(6))
    found = golden_model.compare(a=latents[0], b=latents[1], **asked)
    assert 4 * 2 <= found.spent <= 6 * 2 * 2
    assert golden_model.rank(latents=latents, **asked).reward.spent.max() <= 12
    states = NoisedState(latents, torch.tensor([0.1, 0.5, 0.9]))
    reward = golden_model.score_state(states, golden_model.encode_prompts(["a cat"]))
    assert torch.allclose(reward.sigmas, states.sigma) and reward.spent.tolist() == [1, 1, 1]


def test_a_dropped_candidate_never_leads_though_it_led_the_last_leader_at_first():
    script = iter([torch.tensor([1.0, 0.8, -2.0]), torch.tensor([1.01, 0.81, 2.0])])
    late = [torch.tensor([1.0, 6.0]) for _ in range(8)]

    def scripted(reading: Reading) -> torch.Tensor:
        if len(reading) == 6:
            return torch.cat([next(script), next(script)])
        return late.pop() if len(reading) == 2 else torch.full((len(reading),), 6.0)

    ranking, _ = answer(asker().rank(candidates([1.0, 0.8, 0.0]), NoiseEnsemble((0.5,), Adaptive(9)), 0.0), scripted)
    utility = ranking.reward.utility
    survivors = (ranking.reward.spent == ranking.reward.spent.max()).nonzero()[:, 0]
    assert utility[ranking.order[0]] == utility[survivors].max()


def test_a_candidate_that_was_dropped_at_once_still_has_a_spread():
    known = Calibration(levels=(CalibrationLevel(0.5, 0.0, 1.0, Spread(1e-3, 50.0)),))
    asked = candidates([0.0, 9.0, 9.0001])
    ranking, _ = answer(asker(known).rank(asked, NoiseEnsemble((0.5,), Adaptive(9)), 0.0))
    assert torch.isfinite(ranking.reward.utility_std).all() and torch.isfinite(ranking.reward.standard_error).all()


def test_what_is_known_of_shared_noise_is_not_used_for_candidates_with_noise_of_their_own():
    known = Calibration(levels=(CalibrationLevel(0.5, 0.0, 1.0, Spread(1e-4, math.inf)),))
    apart = candidates([2.0, 0.0], seed=(1, 2))
    found, _ = answer(asker(known).compare(apart, NoiseEnsemble((0.5,), Adaptive(9)), 0.05))
    assert found.spent >= 4


def test_given_noise_is_a_single_draw():
    latents = torch.zeros(1, *SHAPE)
    asked = Candidates(
        (Part(torch.arange(1), latents),), Conditioning(torch.zeros(1, 3, 4)), 0, torch.zeros_like(latents)
    )
    with pytest.raises(ShapeError, match="single draw, got draws=4"):
        answer(asker().score(asked, NoiseEnsemble((0.5,), 4)))
