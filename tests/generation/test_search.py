"""Search on fields whose answers are known: who came from where, what was asked for, where it must lead."""

from __future__ import annotations

import math

import pytest
import torch

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError, WorkError
from dina_lrm.generation import (
    Chunked,
    Counted,
    CpsNoise,
    FlowNoise,
    Guided,
    RewardGuidance,
    beam,
    best_of_n,
    prune,
    rollout,
    smc,
    state_at,
)
from dina_lrm.noise.process import expand_sigma
from dina_lrm.scoring.selection import Cut
from dina_lrm.types import Conditioning

GRID = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
MEAN, SPREAD = 0.5, 0.7


def still(state, conditioning):
    """Nothing moves: a sample is its noise for ever."""
    return torch.zeros_like(state.noised_latents)


def gaussian(state, conditioning):
    """The exact velocity of latents that are normal around a prompt's number, with a spread of 0.7."""
    mean = conditioning.prompt_embeds.mean(dim=(1, 2)).view(-1, *[1] * (state.noised_latents.ndim - 1))
    sigma = expand_sigma(state.sigma, state.noised_latents)
    centred = state.noised_latents - (1 - sigma) * mean
    total = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    return sigma / total * centred - mean - (1 - sigma) * SPREAD**2 / total * centred


def prompts(*numbers: float) -> Conditioning:
    return Conditioning(torch.tensor(numbers).view(-1, 1, 1), None)


def numbered(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 2, 2, generator=torch.Generator().manual_seed(seed))


def mean_of(state, prompt):
    return state.noised_latents.flatten(1).mean(dim=1)


class Table:
    """Rewards by level and sample, of samples that are numbered and stand still."""

    def __init__(self, **rows: list[float]) -> None:
        self.rows = {float(level.replace("at_", "")) / 10: row for level, row in rows.items()}
        self.asked: list[tuple[float, list[int], list[int]]] = []

    def __call__(self, state, prompt):
        numbers = state.noised_latents[:, 0, 0, 0].int().tolist()
        level = round(float(state.sigma[0]), 4)
        self.asked.append((level, numbers, prompt.tolist()))
        return torch.tensor([self.rows[level][number] for number in numbers])


def test_every_step_of_a_pruning_is_written_down() -> None:
    table = Table(at_8=[4, 3, 2, 1, 1, 2, 3, 4], at_4=[1, 2, 0, 0, 0, 0, 9, 8], at_0=[5, 6, 0, 0, 0, 0, 1, 2])
    found = prune(still, numbered(*range(8)), prompts(0, 0), GRID, table, [Cut(0.8, 3), Cut(0.5, 2), Cut(0.0, 1)])
    assert found.ancestry.tolist() == [1, 7] and found.latents[:, 0, 0, 0].tolist() == [1, 7]
    assert found.reward.tolist() == [6, 2]
    assert table.asked == [
        (0.8, [0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 1, 1, 1]),
        (0.4, [0, 1, 2, 5, 6, 7], [0, 0, 0, 1, 1, 1]),
        (0.0, [0, 1, 6, 7], [0, 0, 1, 1]),
    ]
    assert found.evaluations == 8 + 2 * 6 + 2 * 4 and found.reward_evaluations == 8 + 6 + 4
    assert [selection.sigma for selection in found.selections] == pytest.approx([0.8, 0.4, 0.0])
    assert [s.candidates.tolist() for s in found.selections] == [list(range(8)), [0, 1, 2, 5, 6, 7], [0, 1, 6, 7]]
    assert [s.kept.tolist() for s in found.selections] == [[0, 1, 2, 5, 6, 7], [0, 1, 4, 5], [1, 3]]
    assert found.selections[1].reward.tolist() == [1, 2, 0, 0, 9, 8]


def test_a_selection_knows_what_each_was_on_its_way_to() -> None:
    found = prune(gaussian, noise(4), prompts(1.0), GRID, mean_of, [Cut(0.6, 2)])
    trajectory = rollout(gaussian, noise(4), prompts(1.0, 1.0, 1.0, 1.0), GRID)
    before = trajectory.state(1)
    predicted = before.noised_latents - 0.8 * gaussian(before, prompts(1.0, 1.0, 1.0, 1.0))
    assert torch.equal(found.selections[0].predicted, predicted)


def test_the_predicted_clean_latents_may_be_read_instead() -> None:
    read = []

    def judge(state, prompt):
        read.append(state)
        return mean_of(state, prompt)

    found = prune(gaussian, noise(4), prompts(1.0), GRID, judge, [Cut(0.6, 2), Cut(0.0, 1)], of="clean")
    assert [float(state.sigma.max()) for state in read] == [0, 0]
    assert torch.equal(read[0].noised_latents, found.selections[0].predicted)
    best = mean_of(read[0], None).topk(2).indices.sort().values
    assert found.selections[0].kept.tolist() == best.tolist()
    assert torch.equal(read[1].noised_latents[found.selections[1].kept], found.latents)


@pytest.mark.parametrize("cuts", [[], [Cut(0.8, 4), Cut(0.3, 4), Cut(0.0, 4)]], ids=["no cut", "all kept"])
def test_where_all_are_kept_it_is_the_plain_rollout_to_the_last_bit(cuts) -> None:
    found = prune(gaussian, noise(8), prompts(0.0, 3.0), GRID, mean_of, cuts)
    plain = rollout(gaussian, noise(8), prompts(*[0.0] * 4, *[3.0] * 4), GRID)
    assert torch.equal(found.latents, plain.latents) and found.evaluations == 8 * 5
    assert found.ancestry.tolist() == list(range(8))
    assert found.reward.isfinite().all() == bool(cuts)


def test_cuts_that_one_state_reaches_are_one_and_the_fewest_stay() -> None:
    found = prune(still, numbered(*range(4)), prompts(0), GRID, mean_of, [Cut(0.79, 3), Cut(0.61, 2), Cut(0.6, 1)])
    assert [len(s.kept) for s in found.selections] == [1] and found.ancestry.tolist() == [3]


def test_the_best_of_n_is_a_pruning_at_the_end() -> None:
    table = Table(at_0=[1, 5, 3, 4])
    found = best_of_n(still, numbered(0, 1, 2, 3), prompts(0, 0), GRID, table)
    assert found.ancestry.tolist() == [1, 3] and found.evaluations == 4 * 5 and found.reward_evaluations == 4
    two = best_of_n(still, numbered(0, 1, 2, 3), prompts(0), GRID, table, keep=2)
    assert two.ancestry.tolist() == [1, 3] and two.best().tolist() == [0]


def test_who_failed_is_dropped_first_and_a_prompt_without_rewards_is_an_error() -> None:
    table = Table(at_8=[math.nan, -3, -1, math.nan])
    found = prune(still, numbered(0, 1, 2, 3), prompts(0), GRID, table, [Cut(0.8, 2)])
    assert found.ancestry.tolist() == [1, 2] and found.selections[0].reward.isnan().tolist() == [
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(WorkError, match="no sample of prompt 1"):
        prune(still, numbered(0, 1, 0, 3), prompts(0, 0), GRID, table, [Cut(0.8, 1)])
    with pytest.raises(WorkError, match="no sample of prompt 0"):
        prune(still, numbered(0, 1), prompts(0), GRID, mean_of, []).best()


SEARCHES = {
    "prune": lambda n, c, s: prune(gaussian, n, c, GRID, mean_of, [Cut(0.8, 2), Cut(0.0, 1)]),
    "smc": lambda n, c, s: smc(gaussian, n, c, GRID, mean_of, temperature=0.1, seeds=s),
    "beam": lambda n, c, s: beam(gaussian, n, c, GRID, mean_of, branches=3, seeds=s, keep=2),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_prompt_is_the_same_alone_as_among_others(name) -> None:
    search = SEARCHES[name]
    both = search(noise(8), prompts(0.0, 1.0), (5, 6))
    parts = [search(noise(8)[:4], prompts(0.0), (5,)), search(noise(8)[4:], prompts(1.0), (6,))]
    assert torch.equal(both.latents, torch.cat([part.latents for part in parts]))
    assert both.ancestry.tolist() == [*parts[0].ancestry.tolist(), *(parts[1].ancestry + 4).tolist()]
    assert torch.equal(both.reward, torch.cat([part.reward for part in parts]))
    assert torch.equal(both.log_weights, torch.cat([part.log_weights for part in parts]))


@pytest.mark.parametrize("name", ["smc", "beam"])
def test_what_is_drawn_is_a_function_of_the_seed(name) -> None:
    runs = [SEARCHES[name](noise(4), prompts(0.0), (seed,)).latents for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_weights_of_smc_are_those_of_the_last_reading_where_nobody_was_resampled() -> None:
    table = Table(at_8=[1, 2, 3, 4], at_6=[4, 4, 4, 4], at_4=[0, 0, 1, 1], at_2=[9, 0, 9, 0], at_0=[1, 2, 2, 1])
    found = smc(
        still,
        numbered(0, 1, 2, 3),
        prompts(0),
        GRID,
        table,
        temperature=2.0,
        seeds=(0,),
        step_noise=CpsNoise(0.0),
        share=0.0,
    )
    assert found.log_weights.tolist() == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert found.ancestry.tolist() == [0, 1, 2, 3] and found.evaluations == 4 * 5 and found.reward_evaluations == 4 * 5


def test_smc_resamples_whom_the_judge_prefers_and_begins_anew() -> None:
    table = Table(at_8=[0, 0, 50, 0, 0, 0, 0, 0], at_6=[9] * 8, at_4=[9] * 8, at_2=[9] * 8, at_0=[9] * 7 + [50])
    found = smc(
        still, numbered(*range(8)), prompts(0, 0), GRID, table, temperature=1.0, seeds=(0, 0), step_noise=CpsNoise(0.0)
    )
    assert found.ancestry.tolist() == [2, 2, 2, 2, 4, 5, 6, 7]  # the second prompt's are alike until they are finished
    assert found.selections[0].kept.tolist() == [2, 2, 2, 2, 4, 5, 6, 7]
    # Weights since they were last equal: of the first prompt from 50 to 9, of the second from 0.
    assert found.log_weights.tolist() == pytest.approx([-41.0] * 4 + [9.0] * 3 + [50.0])


def test_smc_never_goes_on_with_who_failed() -> None:
    table = Table(at_8=[math.nan, 5, 4], at_6=[9, 5, 4], at_4=[9, 5, 4], at_2=[9, 5, 4], at_0=[9, 5, 4])
    found = smc(
        still,
        numbered(0, 1, 2),
        prompts(0),
        GRID,
        table,
        temperature=10.0,
        seeds=(0,),
        step_noise=CpsNoise(0.0),
        share=0.0,
    )
    assert found.log_weights[0] == -math.inf and found.log_weights[1:].isfinite().all()
    resampled = smc(
        still,
        numbered(0, 1, 2),
        prompts(0),
        GRID,
        table,
        temperature=10.0,
        seeds=(0,),
        step_noise=CpsNoise(0.0),
        share=1.0,
    )
    assert 0 not in resampled.ancestry.tolist()
    lost = Table(at_8=[math.nan, math.nan])
    with pytest.raises(WorkError, match="no sample of prompt 0 has a reward"):
        smc(still, numbered(0, 1), prompts(0), GRID, lost, temperature=1.0, seeds=(0,), step_noise=CpsNoise(0.0))


def test_smc_comes_to_the_tilted_distribution() -> None:
    """Latents N(m, t^2) under a reward x: at temperature T they are N(m + t^2 / T, t^2)."""
    count, grid = 4000, torch.linspace(1, 0, 81)
    begin = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    found = smc(
        gaussian,
        begin,
        prompts(MEAN),
        grid,
        mean_of,
        temperature=0.7,
        seeds=(1,),
        step_noise=FlowNoise(0.7),
        band=(0.0, 0.6),
    )
    weights, values = found.log_weights.softmax(dim=0), found.latents.flatten().double()
    mean = float((weights * values).sum())
    assert mean == pytest.approx(MEAN + SPREAD**2 / 0.7, abs=0.06)
    assert float((weights * (values - mean) ** 2).sum()) == pytest.approx(SPREAD**2, abs=0.08)


def test_a_beam_asks_the_network_once_for_all_branches_of_a_state() -> None:
    found = beam(
        gaussian, noise(6), prompts(0.0, 1.0), GRID, mean_of, branches=4, seeds=(0, 1), band=(0.3, 0.9), keep=1
    )
    assert found.evaluations == 6 * 5 and found.reward_evaluations == 3 * 6 * 4 + 6
    assert [s.sigma for s in found.selections] == pytest.approx([0.8, 0.6, 0.4, 0.0])
    assert [len(s.candidates) for s in found.selections] == [24, 24, 24, 6]
    assert [len(s.kept) for s in found.selections] == [6, 6, 6, 2]
    first = found.selections[0]
    assert first.candidates.tolist() == [n for n in range(6) for _ in range(4)]
    best = first.reward.view(2, 12).topk(3).values.sort().values
    assert torch.equal(first.reward[first.kept].view(2, 3).sort().values, best)
    plain = rollout(gaussian, noise(6), prompts(*[0.0] * 3, *[1.0] * 3), GRID).latents
    assert float(found.reward.mean()) > float(plain.flatten(1).mean(dim=1).view(2, 3).amax(dim=1).mean())


def test_a_beam_without_choice_or_noise_is_the_plain_rollout() -> None:
    found = beam(gaussian, noise(3), prompts(0.0), GRID, mean_of, branches=1, seeds=(0,), step_noise=CpsNoise(0.0))
    plain = rollout(gaussian, noise(3), prompts(0.0, 0.0, 0.0), GRID).latents
    assert torch.allclose(found.latents, plain, atol=1e-5) and found.ancestry.tolist() == [0, 1, 2]


def test_guidance_by_the_clean_latents_comes_to_the_tilted_distribution() -> None:
    """For normal latents and a reward that is linear, `exp(scale r)` moves the mean by `scale t^2` and nothing else."""
    grid = torch.linspace(1, 0, 401)
    begin = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guidance = RewardGuidance(mean_of, scale=2.0, band=(0.0, 0.9999), of="clean")
    plain = prune(gaussian, begin, prompts(MEAN), grid, mean_of, [])
    pushed = prune(gaussian, begin, prompts(MEAN), grid, mean_of, [], guidance=guidance)
    moved = (pushed.latents - plain.latents).flatten()
    assert torch.allclose(moved, torch.full_like(moved, 2.0 * SPREAD**2), rtol=0.02)
    assert pushed.evaluations == plain.evaluations and pushed.reward_evaluations == 64 * 399


@pytest.mark.parametrize("relative", [False, True])
def test_guidance_by_the_state_adds_the_stated_push(relative) -> None:
    state, text = state_at(noise(3), 0.6), prompts(0.0, 1.0, 2.0)
    guidance = RewardGuidance(lambda s, p: 8 * mean_of(s, p), scale=0.3, band=(0.5, 0.7), relative=relative)
    plain = gaussian(state, text)
    pushed = guidance(gaussian, state, text, torch.tensor([0, 1, 2]))
    difference = plain - pushed
    if relative:
        assert torch.allclose(difference.flatten(1).norm(dim=1), 0.3 * plain.flatten(1).norm(dim=1))
        assert bool((difference > 0).all())
    else:
        assert torch.allclose(
            difference, torch.full_like(plain, 0.3 * 0.6 / 0.4)
        )  # 8 numbers a sample: a gradient of 1
    assert not pushed.requires_grad
    outside = state_at(noise(3), 0.8)
    assert torch.equal(guidance(gaussian, outside, text, torch.tensor([0, 1, 2])), gaussian(outside, text))


def test_guidance_raises_the_reward_in_any_search() -> None:
    guidance = RewardGuidance(mean_of, scale=0.2, relative=True)
    for search in (prune, best_of_n):
        asked = dict(cuts=[Cut(0.0, 2)]) if search is prune else dict(keep=2)
        plain = search(gaussian, noise(4), prompts(0.0), GRID, mean_of, **asked)
        pushed = search(gaussian, noise(4), prompts(0.0), GRID, mean_of, **asked, guidance=guidance)
        assert bool((pushed.reward > plain.reward).all())


def test_who_failed_is_not_guided_and_who_gives_no_gradient_is_refused() -> None:
    def partly(state, prompt):
        return torch.stack([mean_of(state, prompt)[0], torch.tensor(math.nan)])

    def broken(state, prompt):
        return mean_of(state, prompt).sub(100).sqrt()

    state, text, numbers = state_at(noise(2), 0.6), prompts(0.0, 0.0), torch.tensor([0, 1])
    plain = gaussian(state, text)
    for judge, moved in ((partly, [True, False]), (broken, [False, False])):
        pushed = RewardGuidance(judge, scale=1.0)(gaussian, state, text, numbers)
        assert [not torch.equal(a, b) for a, b in zip(pushed, plain, strict=True)] == moved
    with pytest.raises(ConfigError, match="needs a reward model in this process"):
        RewardGuidance(lambda s, p: torch.ones(2), scale=1.0)(gaussian, state, text, numbers)


def test_a_counter_around_the_network_counts_the_passes_of_guidance() -> None:
    network = Counted(gaussian)
    found = prune(Guided(network, prompts(0.0), 3.0), noise(4), prompts(1.0), GRID, mean_of, [Cut(0.6, 1)])
    assert found.evaluations == 2 * 4 + 3 and network.evaluations == 2 * found.evaluations


def test_a_field_in_chunks_is_the_field() -> None:
    seen = []

    def field(state, conditioning):
        seen.append(len(state))
        return gaussian(state, conditioning)

    state, text = state_at(noise(5), 0.5), prompts(0.0, 1.0, 2.0, 3.0, 4.0)
    assert torch.equal(Chunked(field, 2)(state, text), gaussian(state, text)) and seen == [2, 2, 1]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: prune(still, noise(3), prompts(0, 0), GRID, mean_of, []), ShapeError, "3 samples.*2 prompts"),
        (lambda: prune(still, noise(2), prompts(0), GRID.flip(0), mean_of, []), ValueRangeError, "must fall"),
        (lambda: prune(still, noise(2), prompts(0), GRID, mean_of, [Cut(0.5, 3)]), ValueRangeError, "keep 3 of the 2"),
        (
            lambda: prune(still, noise(4), prompts(0), GRID, mean_of, [Cut(0.2, 3), Cut(0.5, 2)]),
            ValueRangeError,
            "cut at sigma 0.2 cannot keep 3 of the 2",
        ),
        (
            lambda: best_of_n(still, noise(2), prompts(0), GRID, lambda s, p: s.sigma[:1]),
            ShapeError,
            r"2 states.*\[1\]",
        ),
        (
            lambda: smc(still, noise(2), prompts(0), GRID, mean_of, temperature=0.0, seeds=(0,)),
            ValueRangeError,
            "temperature above 0",
        ),
        (
            lambda: smc(still, noise(2), prompts(0), GRID, mean_of, temperature=1.0, seeds=(0, 1)),
            ShapeError,
            "1 prompts need a seed each, got 2",
        ),
        (lambda: beam(still, noise(2), prompts(0), GRID, mean_of, branches=0, seeds=(0,)), ValueRangeError, "1 branch"),
        (lambda: RewardGuidance(mean_of, 1.0, band=(0.2, 1.0)), ValueRangeError, r"within \[0, 1\)"),
        (lambda: RewardGuidance(mean_of, 1.0, of="end"), ConfigError, "'end'"),
    ],
)
def test_what_cannot_be_is_refused(call, error, says) -> None:
    with pytest.raises(error, match=says):
        call()
