from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.model import RewardNetwork
from dina_lrm.noise import Constant, RectifiedFlow, Uniform
from dina_lrm.preference import BradleyTerry, Thurstone, fidelity, nll
from dina_lrm.training import StepResult, training_step
from dina_lrm.training.step import mean_over_groups, pair_loss, pair_utilities
from dina_lrm.types import Conditioning, NoisedState, PreferenceBatch, PreferenceGroups


def make_batch(pairs: int = 6) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, pairs, 4, 4, 4, generator=generator)
    text = torch.randn(pairs, 3, 8, generator=generator)
    return PreferenceBatch(chosen, rejected, Conditioning(text, text.mean(1)), torch.linspace(0, 1, pairs))


def step(network: nn.Module, batch: PreferenceBatch, seed: int = 0, **changes: object) -> StepResult:
    values = {
        "process": RectifiedFlow(),
        "levels": Uniform(),
        "likelihood": Thurstone(),
        "objective": fidelity,
        "generator": torch.Generator().manual_seed(seed),
        **changes,
    }
    return training_step(network, batch, **values)


class Spy(nn.Module):
    """Remembers what it is shown, says the mean of the latents."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[NoisedState, Conditioning]] = []

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        self.seen.append((state, conditioning))
        return state.noised_latents.mean(dim=(1, 2, 3))


def test_both_sides_meet_one_sigma_and_one_noise_in_one_forward() -> None:
    spy, batch = Spy(), make_batch()
    result = step(spy, batch)
    ((state, conditioning),) = spy.seen
    assert len(state) == len(conditioning) == 2 * len(batch)
    assert torch.equal(state.sigma[:6], state.sigma[6:])
    assert torch.equal(state.sigma[:6], result.sigma)
    assert torch.equal(conditioning.prompt_embeds[:6], conditioning.prompt_embeds[6:])
    alpha = (1 - result.sigma).view(-1, 1, 1, 1)
    difference = state.noised_latents[:6] - state.noised_latents[6:]
    assert torch.allclose(difference, alpha * (batch.latents_chosen - batch.latents_rejected), atol=1e-6)


def test_two_pairs_of_a_batch_meet_different_noise() -> None:
    spy = Spy()
    batch = make_batch(2)
    zeros = torch.zeros_like(batch.latents_chosen)
    step(spy, replace(batch, latents_chosen=zeros, latents_rejected=zeros), levels=Constant(1.0))
    noise = spy.seen[0][0].noised_latents
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


def test_the_same_generator_gives_the_same_bits(network: RewardNetwork) -> None:
    first, again, other = (step(network, make_batch(), seed) for seed in (1, 1, 2))
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, other.loss)


def test_swapping_the_pair_negates_the_margin_and_keeps_the_loss(network: RewardNetwork) -> None:
    batch = make_batch()
    swapped = replace(
        batch,
        latents_chosen=batch.latents_rejected,
        latents_rejected=batch.latents_chosen,
        target=1 - batch.target,
    )
    for objective in (fidelity, nll):
        result, other = step(network, batch, objective=objective), step(network, swapped, objective=objective)
        assert torch.allclose(result.margin, -other.margin, atol=1e-6)
        assert torch.allclose(result.loss, other.loss, atol=1e-6)
        assert result.accuracy == other.accuracy


def test_one_forward_of_both_sides_equals_two_forwards(network: RewardNetwork) -> None:
    batch = make_batch()
    sigma, noise = torch.rand(6), torch.randn(6, 4, 4, 4)
    chosen, rejected = pair_utilities(network, batch, RectifiedFlow(), sigma, noise)
    for utility, latents in ((chosen, batch.latents_chosen), (rejected, batch.latents_rejected)):
        alone = network(RectifiedFlow().add_noise(latents, noise, sigma), batch.conditioning)
        assert torch.allclose(utility, alone, atol=1e-6)


def test_the_loss_falls_when_followed_and_reaches_what_is_trained(network: RewardNetwork) -> None:
    batch = replace(make_batch(), target=torch.ones(6))
    optimiser = torch.optim.Adam(network.head.parameters(), lr=1e-2)
    first = step(network, batch).loss.item()
    for _ in range(30):
        optimiser.zero_grad()
        step(network, batch).loss.backward()
        optimiser.step()
    assert step(network, batch).loss.item() < 0.5 * first
    assert all(p.grad is None for p in network.backbone.network.parameters())


def test_accuracy_leaves_out_vote_ties_and_halves_predicted_ones() -> None:
    batch = make_batch(4)
    chosen = torch.stack([torch.full((4, 4, 4), value) for value in (1.0, -1.0, 0.0, 1.0)])
    batch = replace(
        batch,
        latents_chosen=chosen,
        latents_rejected=torch.zeros_like(chosen),
        target=torch.tensor([1.0, 0.8, 0.9, 0.5]),
    )
    assert step(Spy(), batch, levels=Constant(0.0)).accuracy.item() == pytest.approx(0.5)
    undecided = replace(batch, target=torch.full((4,), 0.5))
    assert step(Spy(), undecided).accuracy.isnan()


def test_given_levels_are_used_as_they_are(network: RewardNetwork) -> None:
    sigma = torch.linspace(0, 1, 6)
    assert torch.equal(step(network, make_batch(), sigma=sigma).sigma, sigma)


def test_hard_labels_take_the_majority_and_drop_ties() -> None:
    chosen, rejected = torch.tensor([1.0, 0.3, -0.4]), torch.zeros(3)
    sigma, target = torch.full((3,), 0.5), torch.tensor([0.6, 0.5, 0.2])
    hard, _ = pair_loss(chosen, rejected, sigma, target, Thurstone(), nll, soft_labels=False)
    law = Thurstone()
    decided = torch.stack(
        [nll(law.log_prob(chosen, rejected, sigma))[0], nll(law.log_prob(rejected, chosen, sigma))[2]]
    )
    assert torch.allclose(hard[[0, 2]], decided)
    soft, _ = pair_loss(chosen, rejected, sigma, target, Thurstone(), nll)
    assert not torch.allclose(soft, hard)


def test_a_batch_of_nothing_but_ties_has_no_hard_loss(network: RewardNetwork) -> None:
    batch = replace(make_batch(2), target=torch.full((2,), 0.5))
    assert step(network, batch, soft_labels=False).loss == 0


@pytest.mark.parametrize("target", [[0.5, 0.5, 0.5, 1.0], [0.9, 0.5, 0.8, 1.0], [1.0, 0.6, 0.0, 0.9]])
def test_hard_labels_count_the_decided_pairs_of_each_group(network: RewardNetwork, target: list[float]) -> None:
    batch = replace(make_groups(), target=torch.tensor(target))
    result = step(network, batch, likelihood=BradleyTerry(), objective=nll, soft_labels=False)
    signs = torch.sign(batch.target - 0.5)
    losses = nll(BradleyTerry().log_prob(signs * result.margin, torch.zeros(4)))
    first = losses[:3][signs[:3] != 0]
    means = [losses[3], *([first.mean()] if len(first) else [])]
    assert torch.allclose(result.loss, torch.stack(means).mean(), atol=1e-6)


def test_only_the_loss_carries_a_gradient(network: RewardNetwork) -> None:
    result = step(network, make_batch())
    assert result.loss.requires_grad
    assert not any(t.requires_grad for t in (result.log_prob, result.margin, result.sigma, result.accuracy))


def test_bad_batches_are_refused(network: RewardNetwork) -> None:
    batch = make_batch()
    with pytest.raises(ShapeError, match="at least one pair"):
        step(network, batch.map(lambda t: t[:0]))
    latents = batch.latents_chosen.clone()
    latents[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueRangeError, match="not finite"):
        step(network, replace(batch, latents_chosen=latents))


def make_groups() -> PreferenceGroups:
    """Three candidates of one prompt with all three pairs, two of another with one."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(5, 4, 4, 4, generator=generator), torch.randn(2, 3, 8, generator=generator)
    group = torch.tensor([0, 0, 0, 1, 1])
    return PreferenceGroups(
        latents,
        Conditioning(text, text.mean(1))[group],
        group,
        chosen=torch.tensor([0, 0, 1, 3]),
        rejected=torch.tensor([1, 2, 2, 4]),
        target=torch.tensor([1.0, 0.8, 0.6, 0.9]),
    )


def test_candidates_of_a_group_are_seen_once_through_one_noise_at_one_level() -> None:
    spy, batch = Spy(), make_groups()
    result = step(spy, batch)
    ((state, _),) = spy.seen
    assert len(state) == 5 and len(result.margin) == len(batch) == 4
    assert state.sigma[:3].unique().numel() == state.sigma[3:].unique().numel() == 1
    assert torch.equal(result.sigma, state.sigma[[0, 0, 0, 3]])
    alpha = 1 - state.sigma[0]
    difference = state.noised_latents[0] - state.noised_latents[1]
    assert torch.allclose(difference, alpha * (batch.latents[0] - batch.latents[1]), atol=1e-6)


def test_groups_say_what_their_pairs_say_alone(network: RewardNetwork) -> None:
    batch, sigma, noise = make_groups(), torch.tensor([0.3, 0.8]), torch.randn(2, 4, 4, 4)
    pairs = PreferenceBatch(
        batch.latents[batch.chosen], batch.latents[batch.rejected], batch.conditioning[batch.chosen], batch.target
    )
    own = batch.group[batch.chosen]
    together = pair_utilities(network, batch, RectifiedFlow(), sigma, noise)
    alone = pair_utilities(network, pairs, RectifiedFlow(), sigma[own], noise[own])
    for side, other in zip(together, alone, strict=True):
        assert torch.allclose(side, other, atol=1e-6)


def test_each_group_weighs_the_same() -> None:
    values, group, every = (
        torch.tensor([1.0, 2.0, 3.0, 10.0]),
        torch.tensor([0, 0, 0, 1]),
        torch.ones(4, dtype=torch.bool),
    )
    assert mean_over_groups(values, group, every) == 6.0
    assert mean_over_groups(values, group, torch.tensor([False, True, True, True])) == 6.25
    assert mean_over_groups(values, group, torch.tensor([False, False, False, True])) == 10.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group": torch.zeros(4)}, "5 candidates need"),
        ({"chosen": torch.zeros(3)}, r"must be \[m\]"),
        ({"chosen": torch.tensor([0, 0, 1, 5])}, "one of 5 candidates, got 5"),
        ({"rejected": torch.tensor([1, 2, 3, 4])}, "pair 2 compares two groups"),
        ({"group": torch.tensor([0, 0, 0, 2, 2])}, r"without a gap, got \[0, 2\]"),
    ],
)
def test_groups_that_do_not_fit_together(wrong: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        replace(make_groups(), **wrong)


@pytest.mark.parametrize("count", [2, 7])
def test_one_sigma_and_one_noise_a_group(network: RewardNetwork, count: int) -> None:
    batch = make_batch()
    with pytest.raises(ShapeError, match=f"6 groups need as many sigmas and noises, got {count} and 6"):
        pair_utilities(network, batch, RectifiedFlow(), torch.rand(count), torch.randn(6, 4, 4, 4))
