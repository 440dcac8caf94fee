"""Each algorithm against what can be worked out by hand: closed forms, finite differences, cases without a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dina_lrm.alignment.algorithms import Draft, FlowDpo, FlowGrpo, Judged, Nft, Refl, StepDpo
from dina_lrm.alignment.algorithms.base import best_and_worst, group_advantages
from dina_lrm.alignment.algorithms.dpo import dpo_loss
from dina_lrm.alignment.algorithms.nft import nft_loss, old_decay
from dina_lrm.errors import ConfigError
from dina_lrm.generation import CpsNoise, FlowNoise, state_at
from dina_lrm.types import Conditioning
from tests.alignment.toy import GRID, SHAPE, Toy, actors, batch, reward


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(algorithm, toy: Toy, group_size: int = 3, reward=reward, seed: int = 1) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update, up to the optimiser's first step."""
    toy.adapter.grad, total = None, 0.0
    for step in algorithm.update(actors(toy, reward), batch(group_size=group_size), seeded(seed)):
        step.loss.backward()
        total += float(step.loss.detach())
        if step.ends:
            break
    assert toy.adapter.grad is not None
    return total, toy.adapter.grad.clone()


@pytest.mark.parametrize(
    "algorithm",
    [Draft(4), Draft(4, kl=0.5)],
    ids=["all steps", "all steps, near the reference"],
)
def test_a_gradient_through_all_steps_is_that_of_finite_differences(algorithm) -> None:
    toy = Toy()
    _, found = gradient(algorithm, toy)
    for place in range(3):
        ends = []
        for move in (1e-6, -1e-6):
            other = Toy()
            other.adapter.data[place] += move
            ends.append(gradient(algorithm, other)[0])
        assert math.isclose(float(found[place]), (ends[0] - ends[1]) / 2e-6, rel_tol=1e-5, abs_tol=1e-8)


@pytest.mark.parametrize("algorithm", [Refl(late=0.5, kl=0.3), Draft(1), Draft(2), Draft(1, noisings=3)])
def test_a_gradient_through_the_last_steps_takes_the_steps_before_as_given(algorithm) -> None:
    class Late(Toy):
        """The adapter of those steps is another parameter: what is differentiated by hand."""

    toy = Toy()
    _, found = gradient(algorithm, toy)
    numeric = []
    for place in range(3):
        ends = []
        for move in (1e-6, -1e-6):
            other = Moved(place, move)
            ends.append(gradient(algorithm, other)[0])
        numeric.append((ends[0] - ends[1]) / 2e-6)
    assert torch.allclose(found, torch.tensor(numeric, dtype=torch.float64), rtol=1e-5, atol=1e-8)


class Moved(Toy):
    """A toy whose adapter is moved only where gradients are on: a step without one keeps the old weights."""

    def __init__(self, place: int, move: float) -> None:
        super().__init__()
        self.move = torch.zeros(3, dtype=torch.float64)
        self.move[place] = move

    def forward(self, state, conditioning):
        if not torch.is_grad_enabled() or not self.on:
            return super().forward(state, conditioning)
        kept = self.base
        self.base = kept + self.move
        try:
            return super().forward(state, conditioning)
        finally:
            self.base = kept


@pytest.mark.parametrize("noise", [FlowNoise(0.7), CpsNoise(0.8)])
def test_the_ratio_is_one_where_nothing_has_been_learned_since(noise) -> None:
    algorithm = FlowGrpo(group_size=3, noise=noise, kl=0.0)
    steps = list(algorithm.update(actors(Toy()), batch(), seeded()))
    assert [float(step.figures["ratio"]) for step in steps] == [1.0] * 3
    assert [step.ends for step in steps] == [False, False, True]


def test_samples_of_a_prompt_may_begin_as_the_same_noise() -> None:
    for shared in (False, True):
        asked: list[torch.Tensor] = []
        toy = Toy()

        def policy(state, conditioning, toy=toy, asked=asked):
            asked.append(state.noised_latents.detach())
            return toy(state, conditioning)

        list(
            FlowGrpo(group_size=3, kl=0.0, shared_noise=shared).update(
                replace(actors(toy), policy=policy), batch(), seeded()
            )
        )
        first, second = asked[0].view(2, 3, *SHAPE), asked[1].view(2, 3, *SHAPE)
        assert torch.equal(first[:, 0], first[:, 1]) == shared and not torch.equal(first[0], first[1])
        assert not torch.equal(second[:, 0], second[:, 1])  # the steps' own noise tells them apart


def test_the_flow_step_and_its_log_probability_are_the_papers() -> None:
    state, velocity = (
        state_at(torch.full((1, 1, 1, 2), 0.4, dtype=torch.float64), 0.8),
        torch.tensor([[[[0.5, -1.0]]]]).double(),
    )
    towards = FlowNoise(0.7).transition(state, velocity, 0.5, 0.8)
    spread, step = 0.7 * math.sqrt(0.8 / 0.2), -0.3
    assert math.isclose(towards.std, spread * math.sqrt(0.3), rel_tol=1e-6)
    for place, v in enumerate((0.5, -1.0)):
        mean = 0.4 * (1 + spread**2 / 1.6 * step) + v * (1 + spread**2 * 0.2 / 1.6) * step
        assert math.isclose(float(towards.mean[0, 0, 0, place]), mean, rel_tol=1e-6)
    sample = torch.tensor([[[[0.1, 0.9]]]]).double()
    normal = torch.distributions.Normal(towards.mean, towards.std)
    assert torch.allclose(FlowNoise(0.7).log_prob(sample, towards), normal.log_prob(sample).flatten(1).mean(dim=1))


def test_at_the_first_level_the_spread_is_that_of_the_next() -> None:
    state, velocity = state_at(torch.zeros(1, 1, 1, 1), 1.0), torch.zeros(1, 1, 1, 1)
    towards = FlowNoise(0.7).transition(state, velocity, 0.9, 0.9)
    assert math.isclose(towards.std, 0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1))


def test_coefficients_are_kept_by_cps() -> None:
    picture, noise = torch.tensor([[[[2.0]]]]), torch.tensor([[[[-1.0]]]])
    state = state_at(0.4 * picture + 0.6 * noise, 0.6)
    towards = CpsNoise(0.5).transition(state, noise - picture, 0.3, 0.9)
    assert math.isclose(towards.std, 0.3 * math.sin(math.pi / 4))
    kept = math.sqrt(0.3**2 - towards.std**2)
    assert math.isclose(float(towards.mean), 0.7 * 2.0 + kept * -1.0, rel_tol=1e-6)


def test_groups_that_are_alike_teach_nothing() -> None:
    def flat(latents, batch) -> Judged:
        return Judged(torch.full((len(latents),), 3.0), torch.ones(len(latents), dtype=torch.bool))

    for algorithm in (FlowGrpo(group_size=3, kl=0.0), FlowDpo(group_size=3)):
        assert torch.equal(gradient(algorithm, Toy(), reward=flat)[1], torch.zeros(3, dtype=torch.float64))


def test_advantages_leave_out_what_failed() -> None:
    judged = Judged(torch.tensor([1.0, 3.0, math.nan, 5.0, 5.0, 5.0]), torch.tensor([1, 1, 0, 1, 1, 1]).bool())
    found = group_advantages(judged, 3)
    assert torch.allclose(found, torch.tensor([-1 / 1.0001, 1 / 1.0001, 0.0, 0.0, 0.0, 0.0]))


def test_the_loss_of_nft_by_hand() -> None:
    state = state_at(torch.tensor([[[[1.0]]]]), 0.5)
    latents, new, old = torch.tensor([[[[0.2]]]]), torch.tensor([[[[1.0]]]]), torch.tensor([[[[2.0]]]])
    # b = 0.5: v+ = 1.5, x0 = 0.25, error 0.05; v- = 2.5, x0 = -0.25, error 0.45; squares over these are the errors again.
    found = nft_loss(state, latents, new, old, torch.tensor([0.75]), 0.5)
    assert torch.allclose(found, torch.tensor([(0.75 * 0.05 + 0.25 * 0.45) / 0.5]))
    assert [old_decay(n, 1) for n in (0, 100, 9999)] == [0.0, 0.1, 0.5]
    assert [old_decay(n, 2) for n in (0, 75, 95, 9999)] == [0.0, 0.0, 0.15, 0.999]


def test_the_old_policy_follows_and_is_saved() -> None:
    toy, algorithm = Toy(), Nft(group_size=3, passes=2)
    for _ in algorithm.update(actors(toy), batch(), seeded()):
        toy.adapter.data += 0.1
    assert int(algorithm.state_dict()["num_updates"]) == 0  # micro batches of one update share the old policy
    algorithm.finish(actors(toy))
    kept = algorithm.state_dict()
    assert torch.allclose(kept["adapter"].double(), toy.adapter.data)  # the first decay is 0
    other = Nft(group_size=3)
    other.load_state_dict(kept)
    list(other.update(actors(Toy()), batch(), seeded()))
    other.finish(actors(Toy()))
    assert int(other.state_dict()["num_updates"]) == 2


def test_noisings_of_nft_are_averaged_into_one_step() -> None:
    toy = Toy()
    steps = list(Nft(group_size=3, passes=2, noisings=3).update(actors(toy), batch(), seeded()))
    assert [step.ends for step in steps] == [False, False, True] * 2
    single = list(Nft(group_size=3, passes=6).update(actors(toy), batch(), seeded()))
    assert all(step.ends for step in single)
    for part, whole in zip(steps, single, strict=True):
        assert torch.allclose(3 * part.loss, whole.loss)


def test_refl_learns_from_real_latents_too() -> None:
    real = torch.randn(6, *SHAPE, generator=seeded(), dtype=torch.float64)

    def drawn(count: int, generator: torch.Generator) -> tuple[torch.Tensor, Conditioning]:
        return real[:count], Conditioning(torch.zeros(count, 1, 1))

    def losses(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        who = replace(actors(Toy()), real=drawn)
        (step,) = Refl(pretraining=weight).update(who, batch(), seeded())
        return step.loss, step.figures.get("pretraining", torch.zeros(()))

    plain, both = losses(0.0)[0], losses(3.0)
    assert torch.allclose(both[0], (plain + 3 * both[1]) / 4) and both[1] > 0
    with pytest.raises(ConfigError, match="needs real latents"):
        list(Refl(pretraining=1.0).update(actors(Toy()), batch(), seeded()))


def test_the_pull_is_strengthened_where_there_is_one() -> None:
    for algorithm in (Refl(kl=0.1), Draft(kl=0.1), FlowGrpo(kl=0.1), Nft(kl=0.1)):
        algorithm.strengthen(3.0)
        assert algorithm.kl == pytest.approx(0.3)
    for stronger in (FlowDpo(strength=10), StepDpo(strength=10)):
        stronger.strengthen(3.0)
        assert stronger.strength == 30
    with pytest.raises(ConfigError, match=r"algorithm\.kl is 0"):
        Refl().strengthen(3.0)


def test_the_loss_of_dpo_by_hand() -> None:
    assert torch.allclose(
        dpo_loss(torch.tensor(-0.2), torch.tensor(0.1), 10.0), torch.tensor(math.log1p(math.exp(-1.5)))
    )
    judged = Judged(
        torch.tensor([1.0, math.nan, 2.0, math.nan, 7.0, math.nan]), torch.tensor([1, 0, 1, 0, 1, 0]).bool()
    )
    best, worst, gap = best_and_worst(judged, 3)
    assert best.tolist()[0] == 2 and worst.tolist()[0] == 0 and gap[0] == 1.0 and gap[1].isnan()


@pytest.mark.parametrize(
    "algorithm",
    [Refl(), Draft(2), FlowGrpo(group_size=3), Nft(group_size=3), FlowDpo(group_size=3), StepDpo(candidates=3)],
)
def test_a_step_along_the_gradient_climbs_the_reward(algorithm) -> None:
    toy, found = Toy(), []
    optimiser = torch.optim.SGD(toy.parameters(), 0.02)
    for update in range(30):
        for step in algorithm.update(actors(toy), batch(4, 3, seed=update), seeded(update)):
            step.loss.backward()
            if step.ends:
                torch.nn.utils.clip_grad_norm_(toy.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
        found.append(float(step.figures["reward"]))
    with torch.no_grad():
        assert worth(toy) > worth(Toy()) + 0.01


def worth(toy: Toy) -> float:
    from dina_lrm.generation import rollout

    given = batch(8, 4, seed=99)
    return float(reward(rollout(toy, given.noise, given.conditioning, GRID).latents, given).reward.mean())


@pytest.mark.parametrize(
    "algorithm",
    [Refl(), Draft(1), FlowGrpo(group_size=3), Nft(group_size=3), FlowDpo(group_size=3), StepDpo(candidates=3)],
)
def test_samples_without_a_reward_leave_the_gradient_of_the_others(algorithm) -> None:
    def some(latents, batch) -> Judged:
        judged = reward(latents, batch)
        valid = torch.arange(len(latents)) % 3 != 1
        return Judged(torch.where(valid, judged.reward, math.nan), valid)

    assert torch.isfinite(gradient(algorithm, Toy(), reward=some)[1]).all()
