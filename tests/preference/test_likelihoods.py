import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.preference import BradleyTerry, Thurstone

LAWS = [Thurstone(), Thurstone(0.0, 0.5), BradleyTerry()]
utilities = st.lists(st.floats(-3, 3), min_size=1, max_size=8)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@given(a=utilities, level=st.floats(0, 1))
def test_the_two_orders_are_the_whole_of_the_probability(law, a, level):
    a = torch.tensor(a, dtype=torch.float64)
    b, sigma = a.flip(0) * 0.5, torch.full_like(a, level)
    total = law.log_prob(a, b, sigma).exp() + law.log_prob(b, a, sigma).exp()
    assert torch.allclose(total, torch.ones_like(total))


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_equal_utilities_are_a_coin_flip_at_every_level(law):
    sigma = torch.linspace(0, 1, 5)
    assert torch.allclose(law.log_prob(torch.ones(5), torch.ones(5), sigma).exp(), torch.full((5,), 0.5))


def test_thurstone_is_the_normal_cdf_of_the_scaled_margin():
    margin, sigma = 0.7, 0.4
    expected = stats.norm.logcdf(margin / math.sqrt(2 * (2 * sigma**2 + 0.05)))
    found = Thurstone().log_prob(torch.tensor([margin]), torch.zeros(1), torch.tensor([sigma]))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_noise_makes_thurstone_less_sure():
    sigma = torch.linspace(0, 1, 11)
    log_prob = Thurstone().log_prob(torch.ones(11), torch.zeros(11), sigma)
    assert (log_prob.diff() < 0).all()


def test_the_most_wrong_pairs_keep_their_gradient():
    chosen = torch.tensor([-10.0], requires_grad=True)
    log_prob = Thurstone().log_prob(chosen, torch.tensor([10.0]), torch.zeros(1))
    log_prob.backward()
    assert torch.isfinite(log_prob).all() and chosen.grad.item() > 100


def test_the_fixed_law_needs_no_sigma_and_the_calibrated_one_says_so():
    assert Thurstone(0.0, 0.5).log_prob(torch.zeros(2), torch.zeros(2)).shape == (2,)
    with pytest.raises(ShapeError, match="needs sigma"):
        Thurstone().log_prob(torch.zeros(2), torch.zeros(2))


def test_a_margin_asks_for_more():
    plain = BradleyTerry().log_prob(torch.ones(1), torch.zeros(1))
    assert BradleyTerry(1.0).log_prob(torch.ones(1), torch.zeros(1)) < plain


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_shapes_that_would_broadcast_are_refused(law):
    with pytest.raises(ShapeError, match=r"one shape \[b\]"):
        law.log_prob(torch.zeros(4), torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("arguments", [(-1.0, 0.05), (2.0, 0.0)])
def test_impossible_variances_are_refused(arguments):
    with pytest.raises(ValueRangeError):
        Thurstone(*arguments)


def test_a_margin_is_for_training_and_not_for_probabilities():
    equal = torch.zeros(1)
    assert BradleyTerry(1.0).log_prob(equal, equal).exp().item() < 0.3
    assert BradleyTerry(1.0).choice().log_prob(equal, equal).exp().item() == pytest.approx(0.5)
    assert Thurstone().choice() == Thurstone()
