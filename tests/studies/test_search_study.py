"""The search study: replay is what `prune` does, costs are counted, choices are made on validation alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dina_lrm.generation import prune, state_at
from dina_lrm.scoring.selection import Cut
from dina_lrm.types import Conditioning
from studies.search.live import FAMILIES, Arm, Prices, Run, prices_of, run
from studies.search.page import write_page
from studies.search.pool import Emoji, Pool, held_out_prompts, sample_pool
from studies.search.schedules import Schedule, candidates, chance_of_the_best, replay
from studies.search.settings import Budget
from studies.search.summary import choose, early_decision, ladder, live_rows, over_one

STEPS, NUMBER = 6, 8
PROMPTS = ["a", "b", "c"]


class Toy:
    """Samples drift by what their prompt says; the reward sees one side of them, the oracle the whole."""

    def __init__(self) -> None:
        self.weights = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
        torch.nn.init.orthogonal_(self.weights.weight, generator=torch.Generator().manual_seed(0))

    def field(self, state, conditioning):
        flat = state.noised_latents.flatten(1)
        moved = self.weights(flat).tanh() + conditioning.prompt_embeds.mean(dim=(1, 2)).unsqueeze(1)
        return moved.view_as(state.noised_latents)

    def text(self, prompts):
        return Conditioning(torch.tensor([float(ord(p) % 5) / 10 for p in prompts]).view(-1, 1, 1), None)

    def judge(self, prompts):
        """Each prompt likes another place; noise is held against a state."""
        liked = torch.tensor([ord(p) % 4 for p in prompts])

        def read(state, prompt):
            flat = state.noised_latents.flatten(1)
            return flat.gather(1, liked[prompt].unsqueeze(1))[:, 0] + flat.mean(dim=1) * (1 - state.sigma)

        return read

    def noise(self, prompts, number):
        seeds = [torch.Generator().manual_seed(ord(p)) for p in prompts]
        return torch.cat([torch.randn(16, 2, 2, 2, generator=seed)[:number] for seed in seeds])

    def grid(self, steps):
        return torch.linspace(1, 0, steps + 1)

    def utility(self, latents, prompts):
        return latents.detach().flatten(1).mean(dim=1)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return sample_pool(Toy(), PROMPTS, STEPS, NUMBER, at_once=2)


@pytest.mark.parametrize("of", ["state", "clean"])
@pytest.mark.parametrize("cuts", [((1, 2),), ((2, 4), (4, 2)), ((3, 1),), ()])
def test_replay_is_what_prune_does(pool: Pool, of: str, cuts: tuple[tuple[int, int], ...]) -> None:
    toy, schedule = Toy(), Schedule(NUMBER, cuts, of)
    grid = toy.grid(STEPS)
    asked = [Cut(float(grid[place]), keep) for place, keep in cuts]
    noise, text = toy.noise(PROMPTS, NUMBER), toy.text(PROMPTS)
    halfway = prune(toy.field, noise, text, grid, toy.judge(PROMPTS), asked, of=of)
    kept = len(halfway.latents) // len(PROMPTS)
    # The last choice reads finished samples, whatever was read on the way.
    rows = torch.arange(len(PROMPTS)).repeat_interleave(kept)
    last = toy.judge(PROMPTS)(state_at(halfway.latents, 0.0), rows).view(-1, kept).argmax(dim=1)
    taken = halfway.latents.view(len(PROMPTS), kept, 2, 2, 2)[torch.arange(len(PROMPTS)), last]
    assert replay(pool, schedule, subsets=1) == pytest.approx(toy.utility(taken, PROMPTS).double().numpy(), abs=1e-6)
    assert schedule.passes(STEPS) * len(PROMPTS) == halfway.evaluations
    assert schedule.reads() * len(PROMPTS) == halfway.reward_evaluations + (len(halfway.latents) if kept > 1 else 0)


def test_what_schedules_cost_and_say() -> None:
    assert Schedule(4).passes(12) == 48 and Schedule(4).reads() == 4 and Schedule(1).reads() == 0
    halving = Schedule(8, ((3, 4), (6, 1)))
    assert halving.passes(12) == 8 * 3 + 4 * 3 + 6 and halving.reads() == 12
    assert halving.cost(12, 0.5) == 42 + 6
    sigmas = np.linspace(11 / 12, 0, 12)
    assert halving.label(sigmas) == "8, then 4 after step 3 (sigma 0.75), 1 after step 6 (sigma 0.50), by state"
    found = list(candidates(12, sigmas, 16, 48.0, 0.8))
    assert len(found) > 20 and len(set(found)) == len(found)
    assert all(one.cost(12, 0.8) <= 48 and one.start <= 16 for one in found)
    assert any(len(one.cuts) == 2 for one in found) and {one.of for one in found} == {"state", "clean"}
    # n passes, two samples for 11 more, n + 2 reads: 1.8 n + 23.6 <= 48.
    assert max(one.start for one in found if one.cuts == ((1, 2),)) == 13


def test_who_is_favoured() -> None:
    truth = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]])
    assert chance_of_the_best(truth, truth).tolist() == [1, 1]
    assert chance_of_the_best(-truth, truth).tolist() == [0, 0]
    assert chance_of_the_best(np.zeros((2, 3)), truth).tolist() == [0.5, 0.5]
    assert chance_of_the_best(np.array([[2.0, 1, 3], [0, 0, 0]]), truth)[0] == pytest.approx(2 / 3)


def test_subsets_leave_the_others_out(pool: Pool) -> None:
    one = replay(pool, Schedule(1), subsets=400)
    assert one == pytest.approx(pool.oracle.mean(axis=1), abs=0.05)
    best = replay(pool, Schedule(NUMBER, final="oracle"), subsets=3)
    assert best == pytest.approx(pool.oracle.max(axis=1))
    assert (replay(pool, Schedule(2, final="oracle"), subsets=200) < best).all()


def test_choices_rows_and_page(pool: Pool, tmp_path) -> None:
    budget = Budget(steps=STEPS, pool=NUMBER, finished=(2,), subsets=8)
    test = sample_pool(Toy(), ["d", "e"], STEPS, NUMBER)
    rows = choose(pool, test, budget, read=0.5)
    assert [row["counted"] for row in rows] == ["network passes", "passes and reads"]
    assert rows[0]["passes"] <= 12 and rows[1]["passes"] + 0.5 * rows[1]["reads"] <= 13
    # Whatever test is, validation chooses the same.
    assert [row["chosen"] for row in choose(pool, pool, budget, read=0.5)] == [row["chosen"] for row in rows]
    toy, prompts = Toy(), ["d", "e"]
    arms = [arms[0] for arms in FAMILIES.values()]
    runs = [run(toy, arm, prompts, STEPS) for arm in arms]
    smc, beam = runs[2], runs[3]
    assert smc.passes == 4 * STEPS and smc.guided == 0 and beam.passes == 4 * STEPS and beam.reads > smc.reads
    assert [one.guided for one in runs[:2]] == [STEPS - 1] * 2 and runs[0].reads == 0  # all levels but pure noise
    ladders = ladder(test, 8)
    assert [row["finished"] for row in ladders] == [2, 4, 8]
    assert all(row["oracle"][0] >= row["reward"][0] for row in ladders)
    found = [(arm, one, [0.0, 0.0, 0.0]) for arm, one in zip(arms, runs, strict=True)]
    results = {
        "prompts": {"validation": 3, "test": 2},
        "small": True,
        "steps": STEPS,
        "pool": NUMBER,
        "read": 0.5,
        "early": early_decision(test),
        "ladder": ladders,
        "choices": rows,
        "second look": choose(pool, test, budget, read=0.5, readings=("clean",)),
        "live": live_rows(test, found, Prices(0.5, 1.0, 2.0), budget),
    }
    assert results["early"][STEPS - 1]["final"][0] == 1  # the last state is the finished one
    assert all("clean" in row["chosen"] or row["passes"] == STEPS for row in results["second look"])
    assert [one["finished"] for one in results["live"][2]["over best of"]] == [
        5,
        6,
    ]  # 24 passes and 24 reads are 36, a finished sample is 6.5
    page = write_page(results, tmp_path).read_text()
    assert "A small run" in page and "best-of-2" in page and "SMC of 4" in page and "nan" not in page


def test_prices() -> None:
    prices = Prices(read=0.5, read_with_gradient=1.5, pass_with_gradient=2.0)
    plain = Arm("", 1, lambda *asked: None)
    assert prices.of(plain, Run([], passes=48, reads=8, guided=0)) == 52
    assert prices.of(Arm("", 1, plain.search, "state"), Run([], 12, 0, 10)) == 12 + 10 * 1.5
    assert prices.of(Arm("", 1, plain.search, "clean"), Run([], 12, 0, 10)) == 12 + 10 * (1.5 + 1)
    counted = prices_of(Toy(), "a", STEPS)
    # The toy's field is one product of two matrices; its reward has none.
    assert counted == Prices(0.0, 0.0, 2.0)


def test_prompts_of_the_study() -> None:
    found = held_out_prompts("validation", 40)
    assert len(set(found)) == 40 == len({prompt.rsplit(",", 1)[0] for prompt in found})
    assert held_out_prompts("validation", 10) == found[:10]


def test_pools_are_kept_whole(pool: Pool, tmp_path) -> None:
    pool.save(tmp_path / "pool.npz")
    again = Pool.load(tmp_path / "pool.npz")
    assert all(
        np.array_equal(getattr(again, name), getattr(pool, name)) for name in ("sigmas", "state", "clean", "oracle")
    )


def test_a_search_is_compared_with_the_samples_that_it_began_as(pool: Pool) -> None:
    # Guidance that does nothing is its own first sample.
    assert over_one(pool.oracle[:, 0].tolist(), 1, pool) == pytest.approx(0)
    assert over_one(pool.oracle[:, :4].mean(axis=1).tolist(), 4, pool) == pytest.approx(0)


def test_fewer_noises_of_a_prompt_are_the_first_of_more() -> None:
    noise = Emoji.noise
    assert torch.equal(noise(None, ["fox, noto style"], 16)[:4], noise(None, ["fox, noto style"], 4))
