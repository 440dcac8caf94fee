from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dina_lrm.worlds.damage import DAMAGES, damage


@pytest.fixture
def picture() -> Tensor:
    """A red disc with a dark bar on white: it has edges, colour and flat parts."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    pixels = torch.ones(3, 64, 64)
    disc = (x - 31) ** 2 + (y - 33) ** 2 < 24**2
    pixels[:, disc] = torch.tensor([0.8, 0.2, 0.1]).view(3, 1)
    pixels[:, 28:34, 20:46] = 0.15
    return pixels


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@pytest.mark.parametrize("kind", DAMAGES)
def test_strength_zero_changes_nothing(kind: str, picture: Tensor) -> None:
    assert torch.equal(damage(picture, kind, 0.0, 3), picture)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_a_picture_again_and_leaves_its_input_alone(kind: str, picture: Tensor) -> None:
    before = picture.clone()
    out = damage(picture, kind, 0.7, 3)
    assert out.shape == picture.shape and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(picture, before)


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_same_seed_gives_the_same_damage(kind: str, picture: Tensor) -> None:
    assert torch.equal(damage(picture, kind, 0.5, 11), damage(picture, kind, 0.5, 11))


@pytest.mark.parametrize("kind", DAMAGES)
def test_more_strength_moves_the_picture_further(kind: str, picture: Tensor) -> None:
    weak, strong = (
        sum(distance(damage(picture, kind, strength, seed), picture) for seed in range(8)) for strength in (0.2, 1.0)
    )
    assert 0 < weak < strong


@pytest.mark.parametrize("kind", DAMAGES)
def test_any_size_will_do(kind: str) -> None:
    assert damage(torch.rand(3, 48, 40), kind, 0.5, 0).shape == (3, 48, 40)


def test_unknown_kind_and_strength_out_of_range_are_refused(picture: Tensor) -> None:
    with pytest.raises(ValueError, match="kind must be one of noise"):
        damage(picture, "rust", 0.5, 0)
    with pytest.raises(ValueError, match="strength must be within 0..1, not 1.5"):
        damage(picture, "noise", 1.5, 0)
