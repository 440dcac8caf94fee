"""A run is made once, and never taken for one of other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dina_lrm.errors import ConfigError
from studies import runs
from studies.hacking.settings import ARMS, QUICK, config_of
from studies.runs import align_once, fingerprint


def test_a_run_is_made_once(tmp_path: Path, monkeypatch) -> None:
    config = config_of(tmp_path, next(iter(ARMS)), 0, QUICK)
    made, reward = [], tmp_path / "reward"
    reward.mkdir()
    (reward / "model.safetensors").write_bytes(b"weights")

    class Aligner:
        def __init__(self, config) -> None:
            self.config = config

        def run(self, resume: str) -> None:
            made.append(resume)
            (self.config.out / "adapter").mkdir()
            (self.config.out / "config.json").write_text(json.dumps(self.config.model_dump(mode="json")))

    monkeypatch.setattr(runs, "Aligner", Aligner)
    align_once(config, reward)
    align_once(config, reward)
    assert made == ["auto"]
    with pytest.raises(ConfigError, match="other settings"):
        align_once(config.model_copy(update={"num_updates": 99}), reward)
    (reward / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ConfigError, match="other settings or weights"):
        align_once(config, reward)


def test_what_something_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path, 1, "b")
    assert first == fingerprint(tmp_path, 1, "b") != fingerprint(tmp_path, 2, "b")
    (tmp_path / "model" / "a.safetensors").write_bytes(b"other weights")
    assert fingerprint(tmp_path, 1, "b") != first
