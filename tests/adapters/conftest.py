import numpy as np
import pytest
import torch
from PIL import Image

from tests.adapters.fake import FakeModel


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def pictures():
    """Three of random pixels."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture
def pixels(pictures):
    """The same as `[3 3 y x]` in 0..1."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def black():
    """What the fake cannot score."""
    return Image.new("RGB", (24, 16))
