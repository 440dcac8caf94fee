"""A fake backbone, a folder of preferences, and a run to train it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dina_lrm.model import RewardNetwork, build_network
from dina_lrm.training import TrainConfig, assemble
from tests.training.fake import load_fake, make_config, write_preferences


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preferences(tmp_path_factory.mktemp("data") / "preferences")


@pytest.fixture
def configure(preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """A configuration whose base is the fake backbone."""
    monkeypatch.setattr(assemble, "load_backbone", load_fake)

    def make(name: str = "run", **changes: Any) -> TrainConfig:
        return make_config(changes.pop("data", preferences), tmp_path / name, **changes)

    return make


@pytest.fixture
def network(configure: Callable[..., TrainConfig]) -> RewardNetwork:
    config = configure()
    torch.manual_seed(3)
    return build_network(load_fake(config.backbone, "fake"), config.head)
