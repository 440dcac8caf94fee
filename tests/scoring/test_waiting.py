"""Ordinary code that waits for a loop in another thread, until its process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dina_lrm.errors import WorkError
from dina_lrm.scoring import waiting
from dina_lrm.scoring.client import RewardClient

# Without the package around it, which loads torch; a name of the main module is forgotten when the interpreter ends.
ENDING = f"""
from runpy import run_path
wait = run_path({waiting.__file__!r})["wait"]

async def answer():
    return "answered"

class Late:
    def __del__(self):
        try:
            print(wait(answer()))
        except Exception as error:
            print(type(error).__name__)

late = Late()
print(wait(answer()))
"""


def test_whoever_asks_when_the_interpreter_ends_is_refused_and_not_left_waiting() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", ENDING], capture_output=True, text=True, timeout=20)
    assert (done.stdout.split(), done.stderr) == (["answered", "WorkError"], "")


def test_a_client_is_closed_by_the_end_of_its_process(monkeypatch) -> None:
    client = RewardClient("http://127.0.0.1:9")
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    client.close()
    with pytest.raises(WorkError, match="interpreter is ending"):
        client.ready()
