"""Fits on votes whose law is known find that law; what cannot be fitted is refused in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.preference.fit import (
    MOST_DOF,
    HeldOut,
    fit_calibration,
    fit_law,
    fit_margin_spread,
    fit_parameters,
    vote_loss,
)

SIGMAS = (0.1, 0.4, 0.8)
SCALE, CLEAN = 3.0, 0.1


def deviations() -> Tensor:
    return torch.tensor([math.sqrt(2 * (SCALE * s * s + CLEAN)) for s in SIGMAS], dtype=torch.float64)


def known(prompts: int = 150, draws: int = 4, noise: float = 0.0, own: float = 0.0, seed: int = 0) -> HeldOut:
    """Pairs whose votes follow `Phi(t)`, seen at each level as `t s(sigma)` and what noise and the level's own error add."""
    g = torch.Generator().manual_seed(seed)
    pairs = 8
    count = prompts * pairs

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    truth = 1.5 * normal(count)
    probability = torch.special.ndtr(truth)
    votes = (torch.rand(count, 9, generator=g, dtype=torch.float64) < probability[:, None]).double().mean(dim=1)
    seen = truth[:, None, None] + own * normal(count, 1, len(SIGMAS)) + noise * normal(count, draws, len(SIGMAS))
    utility = torch.stack([seen * deviations() / 2, -seen * deviations() / 2], dim=1).flatten(0, 1) + 5
    places = torch.arange(count) * 2
    return HeldOut(SIGMAS, utility, places, places + 1, votes, torch.arange(count) // pairs)


def test_the_law_that_made_the_votes_is_found() -> None:
    pairs = known()
    law = fit_law(pairs)
    assert torch.tensor(law.single, dtype=torch.float64).numpy() == pytest.approx(deviations().numpy(), rel=0.08)
    assert law.settled == pytest.approx(law.single, rel=1e-6)
    found = fit_parameters(pairs)
    assert found is not None
    assert abs(found.scale - SCALE) < 3 * found.scale_error < 0.5 * SCALE
    assert abs(found.min_variance - CLEAN) < 3 * found.min_variance_error < 0.5 * CLEAN


def test_standard_errors_are_those_of_many_fits() -> None:
    fits = [fit_parameters(known(prompts=40, draws=1, seed=seed)) for seed in range(30)]
    spread = torch.tensor([fit.scale for fit in fits if fit]).std()
    stated = torch.tensor([fit.scale_error for fit in fits if fit]).mean()
    assert float(stated / spread) == pytest.approx(1.0, abs=0.35)


def at_level(pairs: HeldOut, *places: int) -> HeldOut:
    sigmas = tuple(pairs.sigmas[place] for place in places)
    return HeldOut(sigmas, pairs.utility[:, :, list(places)], *list(vars(pairs).values())[2:])


def test_parameters_that_votes_do_not_tell_apart_are_not_told() -> None:
    pairs = known(prompts=40)
    assert fit_parameters(at_level(pairs, 1)) is None
    assert fit_parameters(at_level(pairs, 0, 2)) is not None
    # The noisiest level has the margins of the cleanest: k would have to be 0 or less.
    backwards = changed(pairs, utility=pairs.utility.flip(2))
    assert fit_parameters(backwards) is None


def test_swapping_a_pair_changes_nothing() -> None:
    pairs = known(prompts=20)
    swapped = HeldOut(SIGMAS, pairs.utility, pairs.rejected, pairs.chosen, 1 - pairs.target, pairs.prompt)
    assert fit_law(swapped).single == pytest.approx(fit_law(pairs).single, rel=1e-6)


def test_draws_that_differ_are_settled_by_averaging() -> None:
    law = fit_law(known(noise=0.7, draws=8, prompts=400))
    pairs = known(noise=0.7, draws=8, prompts=400, seed=1)
    for draws in (1, 4, 8):
        mean = pairs.mean_margin([1], draws)
        own = vote_loss(mean / law.deviation((0.4,), draws=draws), pairs.target).mean()
        others = [vote_loss(mean / (law.deviation((0.4,), draws=draws) * f), pairs.target).mean() for f in (0.85, 1.18)]
        assert own < min(others)


def test_levels_that_err_each_in_its_own_way_are_worth_more_together() -> None:
    alike, apart = fit_law(known(prompts=300)), fit_law(known(prompts=300, own=0.8))
    assert alike.disagreement < 0.05 < apart.disagreement
    pairs = known(prompts=300, own=0.8, seed=1)
    mean = pairs.mean_margin([0, 1, 2], 1)
    law = fit_law(known(prompts=300, own=0.8))
    deviation = law.deviation(SIGMAS)
    best = min((float(vote_loss(mean / (deviation * f), pairs.target).mean()), f) for f in (0.7, 0.85, 1.0, 1.18, 1.4))
    assert best[1] == 1.0


def test_affine_rewards_have_mean_0_and_deviation_1_and_logistic_ones_are_probabilities() -> None:
    pairs = known(prompts=30)
    affine, logistic = fit_calibration(pairs), fit_calibration(pairs, "logistic")
    for place, sigma in enumerate(SIGMAS):
        utility = pairs.utility[:, :, place]
        reward = affine(utility, (sigma,))
        assert float(reward.mean()) == pytest.approx(0, abs=1e-9) and float(reward.std()) == pytest.approx(1)
        one = utility.flatten()
        wins = torch.special.ndtr((one[:, None] - one) / logistic.choice.single[place]).mean(dim=1)  # type: ignore[union-attr]
        assert float((logistic(one, (sigma,)) - wins).abs().max()) < 0.03


def test_a_reward_of_several_levels_keeps_the_mean() -> None:
    pairs = known(prompts=30)
    reward = fit_calibration(pairs)(pairs.utility.mean(dim=(1, 2)), SIGMAS)
    assert float(reward.mean()) == pytest.approx(0, abs=1e-9)


def test_the_spread_of_margins_is_what_made_them() -> None:
    g = torch.Generator().manual_seed(0)
    pairs, draws, dof, variance = 4000, 5, 6.0, 0.3
    chi = torch.distributions.Chi2(torch.tensor(dof, dtype=torch.float64))
    torch.manual_seed(0)
    own = variance * dof / chi.sample((pairs,))
    margin = own.sqrt()[:, None] * torch.randn(pairs, draws, generator=g, dtype=torch.float64)
    found = fit_margin_spread(margin)
    assert found.variance == pytest.approx(variance, rel=0.08) and found.dof == pytest.approx(dof, rel=0.2)


def test_pairs_that_are_alike_have_one_spread() -> None:
    margin = 2 * torch.randn(500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fit_margin_spread(margin)
    assert found.dof > 30 and found.variance == pytest.approx(4, rel=0.1)
    assert fit_margin_spread(torch.ones(10, 4)).variance == 0


def test_no_spread_is_taken_for_certain() -> None:
    """What other pairs did must give way to enough draws of a new one."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 4, generator=g, dtype=torch.float64)
    for margin in (torch.ones(10, 4), noise[:3], noise / noise.std(dim=1, keepdim=True), noise):
        assert fit_margin_spread(margin).dof <= MOST_DOF < math.inf


def test_the_spread_needs_four_draws() -> None:
    assert fit_calibration(known(prompts=10, draws=3)).margin_spread(0.4) is None
    assert fit_calibration(known(prompts=10, draws=4, noise=0.1)).margin_spread(0.4) is not None


def test_some_of_the_pairs_are_pairs_of_the_same_margins() -> None:
    pairs = known(prompts=10)
    half = pairs[pairs.prompt % 2 == 0]
    assert torch.equal(half.margin, pairs.margin[pairs.prompt % 2 == 0])
    assert len(half.utility) == len(half.margin) * 2


def changed(pairs: HeldOut, **changes: Tensor) -> HeldOut:
    return HeldOut(**{**vars(pairs), **changes})


def test_what_cannot_be_fitted_is_refused() -> None:
    pairs = known(prompts=10)
    with pytest.raises(DataError, match="50 pairs of 5 prompts"):
        fit_calibration(pairs[torch.arange(20)])
    with pytest.raises(DataError, match="ties"):
        fit_calibration(changed(pairs, target=torch.full_like(pairs.target, 0.5)))
    with pytest.raises(DataError, match="same utility"):
        fit_calibration(changed(pairs, utility=torch.ones_like(pairs.utility)))
    by_prompt = pairs.prompt.repeat_interleave(2).double()[:, None, None].expand_as(pairs.utility)
    for fit in (fit_calibration, fit_law):
        with pytest.raises(DataError, match="two candidates of every pair the same utility"):
            fit(changed(pairs, utility=by_prompt))
    with pytest.raises(DataError, match="do not follow"):
        fit_calibration(changed(pairs, target=1 - pairs.target))
    with pytest.raises(DataError, match="without an exception"):
        fit_calibration(changed(pairs, target=(pairs.margin[:, 0, 0] > 0).double()))
    with pytest.raises(ValueRangeError, match="finite"):
        changed(pairs, utility=pairs.utility * torch.nan)
    with pytest.raises(ShapeError, match="draws"):
        changed(pairs, utility=pairs.utility[:, :, :2])
    with pytest.raises(ShapeError, match="one a pair"):
        changed(pairs, target=pairs.target[:2])
