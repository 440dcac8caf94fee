from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

import dina_lrm
from dina_lrm.cli import main as door
from dina_lrm.errors import CheckpointError, WorkError

VERBS = ("demo", "train", "sample", "score", "compare", "convert", "info", "verify")


def test_without_a_verb_comes_the_help(dina) -> None:
    ran = dina()
    assert ran.status == 0 and ran.err == ""
    assert all(verb in ran.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_and_json(dina, verb: str) -> None:
    ran = dina(verb, "--help")
    assert ran.status == 0 and "--json" in ran.out


@pytest.mark.parametrize("verb", list(get_command(door.app).commands))
def test_the_help_shows_every_word_of_every_option(dina, monkeypatch, verb: str) -> None:
    """Brackets in a help text would be taken for markup, and not shown."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    shown = " ".join(dina(verb, "--help").out.split())
    options = get_command(door.app).commands[verb].params
    assert [option.name for option in options if " ".join((option.help or "").split()) not in shown] == []


def test_version(dina) -> None:
    assert dina("--version").out == f"dina-lrm {dina_lrm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["guess"], "guess"),
        (["score", "--model", "m", "--prompt", "p"], "IMAGE..."),
        (["score", "a.png", "--prompt", "p"], "--model"),
        (["score", "a.png", "--model", "m", "--prompt", "p", "--draws", "many"], "--draws"),
        (["score", "a.png", "--model", "m", "--prompt", "p", "--dtype", "float8"], "float8"),
        (["compare", "a.png", "--model", "m", "--prompt", "p"], "B"),
        (["info", "--colour", "red"], "--colour"),
    ],
)
def test_wrong_usage_is_one_line_and_2(dina, arguments: list[str], says: str) -> None:
    ran = dina(*arguments)
    assert ran.status == 2
    assert says in ran.one_line()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckpointError("broken\nin two lines"), 2),
        (WorkError("diverged"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_a_status_and_a_line(
    dina, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(door, "app", fail)
    ran = dina("demo")
    assert ran.status == status
    ran.one_line()


def test_a_bug_is_not_hidden(dina, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(door, "app", fail)
    with pytest.raises(ZeroDivisionError):
        dina("demo")


def test_the_installed_command_exits_with_the_status() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from dina_lrm.cli.main import main; main()", "verify", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dina-lrm: error: nowhere is no folder; give a model or preference folder\n"
