import pytest
import torch

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.noise import RectifiedFlow, VariancePreserving

PROCESSES = [RectifiedFlow(), VariancePreserving()]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_ends_are_the_latents_and_the_noise(process):
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(process.add_noise(latents, noise, torch.zeros(2)).noised_latents, latents)
    assert torch.equal(process.add_noise(latents, noise, torch.ones(2)).noised_latents, noise)


def test_rectified_flow_is_a_straight_line():
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    state = RectifiedFlow().add_noise(latents, noise, torch.tensor([0.25, 0.5]))
    assert torch.allclose(state.noised_latents[0], 0.75 * latents[0] + 0.25 * noise[0])
    assert torch.allclose(state.noised_latents[1], 0.5 * (latents[1] + noise[1]))


def test_variance_preserving_keeps_the_variance():
    sigma = torch.linspace(0, 1, 11)
    assert torch.allclose(VariancePreserving().alpha(sigma).square() + sigma.square(), torch.ones(11))


def test_gradients_reach_the_latents():
    latents = torch.randn(1, 2, 2, 2, requires_grad=True)
    RectifiedFlow().add_noise(latents, torch.randn(1, 2, 2, 2), torch.tensor([0.4])).noised_latents.sum().backward()
    assert torch.allclose(latents.grad, torch.full_like(latents, 0.6))


@pytest.mark.parametrize("sigma", [-0.01, 1.01, float("nan")])
def test_sigma_outside_is_refused_by_value(sigma):
    with pytest.raises(ValueRangeError, match=r"sigma must lie in \[0, 1\]"):
        RectifiedFlow().add_noise(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([sigma]))


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1, 1, 1)])
def test_sigma_is_one_level_a_sample(shape):
    with pytest.raises(ShapeError, match="one level a sample"):
        RectifiedFlow().add_noise(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.zeros(shape))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="shape of latents"):
        RectifiedFlow().add_noise(torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(2))


def test_latents_that_are_not_finite_are_refused_by_place():
    latents = torch.zeros(1, 1, 2, 2)
    latents[0, 0, 1, 0] = float("nan")
    with pytest.raises(ValueRangeError, match=r"index \[0, 0, 1, 0\]"):
        RectifiedFlow().add_noise(latents, torch.zeros(1, 1, 2, 2), torch.zeros(1))
