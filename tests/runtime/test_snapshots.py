from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dina_lrm.errors import CheckpointError, ConfigError
from dina_lrm.runtime.ema import Ema
from dina_lrm.runtime.optimiser import OptimiserConfig, build_optimiser
from dina_lrm.runtime.snapshots import (
    Resumed,
    Snapshot,
    check_identity,
    choose_snapshot,
    find_snapshots,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
)

IDENTITY = {"seed": 0, "head": {"kind": "query", "width": 8}}


class State:
    """Something that trains."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.parameters = dict(nn.Linear(3, 2).named_parameters())
        self.optimiser = build_optimiser(self.parameters, OptimiserConfig(learning_rate=0.1))
        self.ema = Ema(self.parameters, 0.9)
        self.memory: dict[str, Tensor] = {}

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            loss = sum(p.square().sum() for p in self.parameters.values())
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.ema.update()

    def save(self, folder: Path, step: int) -> Snapshot:
        return save_snapshot(
            folder, step, self.parameters, self.optimiser, self.ema, IDENTITY, {"seconds": 1.5 * step}, self.memory
        )

    def load(self, snapshot: Snapshot) -> Resumed:
        return load_snapshot(snapshot, self.parameters, self.optimiser, self.ema, IDENTITY)


def test_what_else_is_remembered_comes_back(tmp_path: Path) -> None:
    state = State(0)
    state.step()
    assert state.load(state.save(tmp_path, 1)).memory == {}
    state.memory = {"old.weight": torch.arange(3.0)}
    found = State(1).load(state.save(tmp_path, 2)).memory
    assert found.keys() == {"old.weight"} and torch.equal(found["old.weight"], torch.arange(3.0))


def test_what_is_loaded_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    first, second = State(0), State(1)
    first.step(3)
    snapshot = first.save(tmp_path, 3)
    assert second.load(snapshot).progress == {"seconds": 4.5}
    for state in (first, second):
        state.step(2)
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, second.parameters[name])
        assert torch.equal(first.ema.state_dict()[name], second.ema.state_dict()[name])


def test_only_whole_snapshots_are_found_in_order_of_step(tmp_path: Path) -> None:
    state = State(0)
    state.step()
    for step in (1_000_000, 500, 20):
        state.save(tmp_path, step)
    (tmp_path / ".step-000700.partial").mkdir()
    (tmp_path / "step-000800").mkdir()
    (tmp_path / "notes").mkdir()
    assert [s.step for s in find_snapshots(tmp_path)] == [20, 500, 1_000_000]
    prune_snapshots(tmp_path, 2)
    assert [s.step for s in find_snapshots(tmp_path)] == [500, 1_000_000]
    assert not list(tmp_path.glob(".step*"))
    assert find_snapshots(tmp_path / "nowhere") == []


def test_where_a_run_begins(tmp_path: Path) -> None:
    assert choose_snapshot(tmp_path / "checkpoints", None) is None
    assert choose_snapshot(tmp_path / "checkpoints", "auto") is None
    state = State(0)
    state.step()
    snapshots = [state.save(tmp_path / "checkpoints", step) for step in (5, 10)]
    assert choose_snapshot(tmp_path / "checkpoints", "auto") == snapshots[1]
    assert choose_snapshot(tmp_path / "other", snapshots[0].folder) == snapshots[0]
    assert choose_snapshot(tmp_path / "other", tmp_path) == snapshots[1]
    with pytest.raises(ConfigError, match="up to step 10"):
        choose_snapshot(tmp_path / "checkpoints", None)


def test_a_damaged_file_is_refused_before_anything_moves(tmp_path: Path) -> None:
    state = State(0)
    state.step()
    snapshot = state.save(tmp_path, 1)
    path = snapshot.folder / "optimiser.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    other = State(1)
    before = [p.detach().clone() for p in other.parameters.values()]
    with pytest.raises(CheckpointError, match=r"optimiser.safetensors was changed"):
        other.load(snapshot)
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters.values(), strict=True))
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        other.load(snapshot)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 9}'])
def test_a_state_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    state = State(0)
    state.step()
    snapshot = state.save(tmp_path, 1)
    (snapshot.folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state.json"):
        state.load(snapshot)


def test_every_key_that_differs_is_named(tmp_path: Path) -> None:
    state = State(0)
    state.step()
    snapshot = state.save(tmp_path, 1)
    check_identity(snapshot, IDENTITY)
    with pytest.raises(ConfigError, match=r"head.kind \(was 'query', is None\), head.width \(was 8, is 9\), new"):
        check_identity(snapshot, {"seed": 0, "head": {"width": 9}, "new": 1})


def test_another_model_is_refused(tmp_path: Path) -> None:
    state = State(0)
    state.step()
    snapshot = state.save(tmp_path, 1)
    state.parameters = {**state.parameters, "more": nn.Parameter(torch.zeros(1))}
    with pytest.raises(CheckpointError, match="more is on one side only"):
        state.load(snapshot)
