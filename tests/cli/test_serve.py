"""`dina-lrm serve`: what it takes, and what it refuses before anything is loaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from dina_lrm.cli.main import run
from dina_lrm.cli.serve import name_models
from dina_lrm.errors import InputError
from tests.serve.arena_folders import NUM_PROMPTS, preference_folder, prompt_of


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--allow-load"], "needs API keys"),
        (["--api-key-file", "/no/such/file"], "cannot be read"),
        (["--model", "tiny=x"], "two models would be served as 'tiny'"),
        (["--model", "a/b=="], "NAME=PATH"),
        (["--device", "moon"], "moon"),
        (["--arena", "/no/such/folder"], "/no/such/folder"),
        (["--arena-split", "test"], "give its folder with --arena"),
        (["--allow-origin", "rewards.example"], "scheme and host"),
        (["--allow-host", "rewards.example:8000"], "without a port"),
        (["--port", "70000"], "port"),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_is_loaded(options, told, capfd, monkeypatch) -> None:
    monkeypatch.delenv("DINA_LRM_API_KEYS", raising=False)
    assert run(["serve", "--model", "tiny=here", *options]) == 2
    assert told in capfd.readouterr().err


def test_an_address_in_use_is_told(capfd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--model", "here", "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capfd.readouterr().err


def test_keys_of_the_environment_open_a_server_to_others(monkeypatch) -> None:
    from dina_lrm.serve import run as running

    served = []
    monkeypatch.setenv("DINA_LRM_API_KEYS", "0123456789abcdef,fedcba9876543210")
    monkeypatch.setattr(running, "serve", lambda settings, sources, arena: served.append((settings.guarded(), sources)))
    arguments = [
        "serve",
        "--model-path",
        "a",
        "--model",
        "b=models/c",
        "--base",
        "x",
        "--host",
        "0.0.0.0",
        "--dtype",
        "float16",
    ]
    assert run(arguments) == 0
    settings, sources = served[0]
    assert len(settings.api_keys) == 2 and settings.host == "0.0.0.0"
    assert {name: (source.path, source.base, source.dtype) for name, source in sources.items()} == {
        "a": ("a", "x", "float16"),
        "b": ("models/c", "x", "float16"),
    }
    assert os.environ["DINA_LRM_API_KEYS"] not in repr(settings)


def test_an_arena_shows_a_split_of_its_folder(tmp_path, monkeypatch, capfd) -> None:
    from dina_lrm.serve import run as running

    shown = []
    monkeypatch.setattr(running, "serve", lambda settings, sources, arena: shown.append(dict(arena.source.by_prompt)))
    preference_folder(tmp_path / "things")
    arguments = ["serve", "--model", "a", "--arena", str(tmp_path / "things"), "--allow-origin", "https://a.example"]
    assert run([*arguments, "--arena-split", "test"]) == run(arguments) == 0
    assert list(shown[0]) == [prompt_of(0)] and len(shown[1]) == NUM_PROMPTS
    assert run([*arguments, "--arena-split", "nothing"]) == 2
    assert "nothing" in capfd.readouterr().err


def test_models_have_names() -> None:
    assert name_models(["a=x/y", "models/emoji", "owner/name"]) == {
        "a": "x/y",
        "emoji": "models/emoji",
        "name": "owner/name",
    }
    for wrong in (["=x"], ["a="], ["a b=x"], ["a=x", "a=y"], ["x/a", "y/a"]):
        with pytest.raises(InputError):
            name_models(wrong)


def test_help_loads_neither_torch_nor_a_web_framework() -> None:
    program = """
import sys
from dina_lrm.cli.main import run
assert run(["serve", "--help"]) == 0
print([name for name in ("torch", "fastapi", "starlette", "uvicorn", "PIL", "numpy") if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]" and "--max-wait-ms" in ran.stdout and "--model-path" in ran.stdout
