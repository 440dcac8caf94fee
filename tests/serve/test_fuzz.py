"""A few hundred of the fuzzers' inputs; `python -m fuzz.wire` and `fuzz.routes` send hundreds of thousands."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from types import ModuleType

import pytest

from fuzz import guided, routes
from fuzz.mutations import Mutator
from fuzz.tally import Tally
from fuzz.wire import app_of, ask_routes, read_blobs
from tests.serve.fake import in_loop


def test_spoiled_blobs_are_refused_or_read_as_the_library_reads_them() -> None:
    tally = Tally()
    read_blobs(tally, 600, random.Random(7))
    assert tally.total == 600 and not tally.failures
    assert {name.split(" (")[0] for name in tally.outcomes} >= {
        "reader: refused",
        "reader: read, a request of protocol 1",
    }


@in_loop
async def test_spoiled_requests_are_refused_and_leave_others_alone(golden_model) -> None:
    tally = Tally()
    async with app_of(golden_model) as app:
        await ask_routes(tally, 240, random.Random(8), app)
    assert tally.total == 240 and not tally.failures
    assert {"200", "400 bad_input", "422 bad_input"} <= set(tally.outcomes)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_spoils_in_the_same_way(seed: int) -> None:
    first, second = (Mutator(random.Random(seed)) for _ in range(2))
    value = {"a": [1, "b"], "c": {"d": None}}
    assert [first.json(value) for _ in range(50)] == [second.json(value) for _ in range(50)]


def test_the_package_says_what_there_is_to_run() -> None:
    ran = subprocess.run([sys.executable, "-m", "fuzz"], capture_output=True, text=True, check=True)
    assert all(f"python -m fuzz.{name}" in ran.stdout for name in ("wire", "routes", "guided"))


@pytest.mark.parametrize(("module", "package"), [(routes, "schemathesis"), (guided, "atheris")])
def test_a_missing_package_is_told_in_one_line_with_the_extra(monkeypatch, module: ModuleType, package: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == f"{package} is not installed: pip install -e '.[fuzz]'"
