from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dina_lrm.cli.main import run


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str

    def one_line(self) -> str:
        """Stderr, which must be one line in our form, and stdout empty."""
        assert self.out == ""
        assert self.err.startswith("dina-lrm: error: ")
        assert self.err.count("\n") == 1 and self.err.endswith("\n")
        return self.err.removeprefix("dina-lrm: error: ").strip()


@pytest.fixture
def dina(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`dina("score", "--prompt", ...)` in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call
