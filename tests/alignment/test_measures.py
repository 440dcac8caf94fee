"""What is read off samples: a grid is seen where there is one and only there; norms, distances by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dina_lrm.alignment.measures import diversity, grid_score, latent_norm
from dina_lrm.errors import ShapeError, ValueRangeError


def drawings(count: int = 24, side: int = 64) -> Tensor:
    """Flat shapes with hard edges on white, as emoji are: discs and boxes at random places."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = torch.ones(count, 3, side, side)
    for picture in pictures:
        for number in range(6):
            (cy, cx), size = (
                (side * torch.rand(2, generator=generator)).tolist(),
                4 + 14 * float(torch.rand((), generator=generator)),
            )
            near = (
                (y - cy).abs().maximum((x - cx).abs()) if number % 2 else ((y - cy) ** 2 + (x - cx) ** 2).float().sqrt()
            )
            picture[:, near < size] = torch.rand(3, 1, generator=generator)
    return pictures


def with_grid(pictures: Tensor, period: int, strength: float) -> Tensor:
    """Lines of so many grey levels (of 255), in 8 bits."""
    lines = torch.arange(pictures.shape[-1]) % period == 0
    return (pictures - strength / 255 * (lines[:, None] | lines)).clamp(0, 1).mul(255).round() / 255


def test_pictures_without_a_grid_score_about_nothing() -> None:
    score = grid_score(drawings(), 8)
    assert score.shape == (24,) and score.mean().abs() < 0.2 and score.std() < 0.4


@pytest.mark.parametrize("period", [4, 8, 16])
def test_the_score_rises_with_the_strength_of_a_grid(period) -> None:
    plain = drawings()
    means = [float(grid_score(with_grid(plain, period, strength), period).mean()) for strength in (0, 8, 16, 32)]
    assert means == sorted(means) and means[-1] - means[0] > 1


def test_a_grid_of_half_the_period_is_seen_too() -> None:
    plain = drawings()
    assert (grid_score(with_grid(plain, 8, 16), 16) - grid_score(plain, 16)).mean() > 1


def test_a_grid_that_can_hardly_be_seen_can_be_told() -> None:
    plain = drawings()
    before, after = grid_score(plain, 8), grid_score(with_grid(plain, 8, 6), 8)
    assert after.mean() - before.mean() > before.std() and (after > before).all()


def test_a_lone_edge_is_no_grid() -> None:
    halves = torch.ones(1, 3, 64, 64)
    halves[..., 29:] = 0.2
    assert abs(float(grid_score(halves, 8))) < 0.7


def test_another_period_is_no_grid_of_this_one() -> None:
    plain = drawings()
    other = grid_score(with_grid(plain[..., :60, :60], 5, 8), 6) - grid_score(plain[..., :60, :60], 6)
    assert other.mean() < 0.1


def test_noise_has_no_grid_and_a_picture_stands_alone() -> None:
    noise = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert abs(float(grid_score(noise, 2).mean())) < 0.2
    assert torch.equal(grid_score(noise, 2)[3:5], grid_score(noise[3:5], 2))


def test_what_is_over_a_multiple_of_the_period_is_cut_off() -> None:
    pictures = with_grid(drawings(), 8, 8)
    wider = torch.cat([pictures, torch.rand(24, 3, 64, 5, generator=torch.Generator().manual_seed(0))], dim=3)
    assert torch.allclose(grid_score(wider, 8), grid_score(pictures, 8))


def test_what_has_no_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match="sides of 16"):
        grid_score(torch.zeros(1, 3, 15, 64), 8)
    with pytest.raises(ShapeError):
        grid_score(torch.zeros(3, 64, 64), 8)
    with pytest.raises(ValueRangeError, match="got 1"):
        grid_score(torch.zeros(1, 3, 64, 64), 1)


def test_a_norm_by_hand() -> None:
    assert torch.allclose(
        latent_norm(torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])), torch.tensor([math.sqrt(12.5), 0.0])
    )


def test_diversity_by_hand() -> None:
    samples = torch.zeros(6, 1, 1, 2)
    samples[1, 0, 0], samples[2, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    # Root mean squares 5 / sqrt 2, 10 / sqrt 2 and 5 / sqrt 2; a prompt whose samples are one has none.
    assert torch.allclose(diversity(samples, 3), torch.tensor([20 / 3 / math.sqrt(2), 0.0]))
    assert diversity(samples, 1).shape == (0,)
    with pytest.raises(ShapeError, match="6 samples"):
        diversity(samples, 4)
