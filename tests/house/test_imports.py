"""The floors: what `make imports` holds, held by the tests too."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_contracts_hold(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(root)
    status = lint_imports(config_filename="pyproject.toml", cache_dir=None)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_every_room_has_a_floor(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract for contract in contracts if contract["id"] == "floors")
    named = {room.strip() for layer in floors["layers"] for room in layer.split("|")}
    package = root / "src" / "dina_lrm"
    rooms = {path.stem for path in package.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"}
    assert named == rooms - {"__init__"}


@pytest.mark.parametrize("door", ["dina_lrm.runtime"])
def test_accelerate_has_one_door(root: Path, door: str) -> None:
    inside = root / "src" / Path(*door.split("."))
    users = [
        path
        for path in (root / "src").rglob("*.py")
        if "import accelerate" in path.read_text() or "from accelerate" in path.read_text()
    ]
    assert users and all(inside in path.parents for path in users)
