"""A third party's backbone and head are found by entry point, in a process that knows of them by installation only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "third_party"
METADATA = "Metadata-Version: 2.1\nName: someones-lrm\nVersion: 1.0\n"
# Two of the names are taken: nobody's installation may change what ours mean.
ENTRY_POINTS = """
[dina_lrm.backbones]
pebble = someones_lrm:PebbleBackbone
sd3 = someones_lrm:PebbleBackbone

[dina_lrm.heads]
loudest = someones_lrm:LoudestHeadConfig
query = someones_lrm:LoudestHeadConfig
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installer leaves it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "someones_lrm.py", site)
    about = site / "someones_lrm-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.fixture(scope="module")
def session(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of `third_party/session.py`."""
    paths = [str(installed), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "session.py"), str(tmp_path_factory.mktemp("session"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_they_are_listed_beside_ours(session: dict[str, Any]) -> None:
    assert session["backbones"]["pebble"] == "someones_lrm:PebbleBackbone"
    assert session["heads"]["loudest"] == "someones_lrm:LoudestHeadConfig"
    assert {"flux", "sd3", "wan"} < session["backbones"].keys() and {"mean_pool", "query"} < session["heads"].keys()


def test_our_names_stay_ours(session: dict[str, Any]) -> None:
    assert session["backbones"]["sd3"].startswith("dina_lrm.") and session["heads"]["query"].startswith("dina_lrm.")


def test_a_configuration_names_them(session: dict[str, Any]) -> None:
    assert session["head"] == {"kind": "loudest", "loudness": 3.0}
    assert session["overridden"] == {"kind": "loudest", "loudness": 5.0}
    assert session["own_taps"]["image_taps"] == [0, 1] and session["own_taps"]["text_taps"] == [0]


@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_a_model_of_them_is_saved_and_loaded(session: dict[str, Any], kind: str) -> None:
    made = session[kind]
    assert made["network"] == ["PebbleBackbone", "LoudestHead"]
    assert made["loudness"] == 3.0
    assert made["same_bytes"] and made["near"] and made["scored"]
    assert made["described"]["kind"] == "loudest"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("unknown_backbone", ["ConfigError", "nobody", "pebble", "sd3"]),
        ("unknown_backbone_and_no_taps", ["ConfigError", "nobody", "pebble", "sd3"]),
        ("unknown_head", ["ConfigError", "nobody", "loudest", "query", "mean_pool"]),
        ("wrong_size", ["ConfigError", "loudness", "much"]),
        ("wrong_key", ["ConfigError", "width"]),
    ],
)
def test_what_is_wrong_is_refused_by_name(session: dict[str, Any], what: str, told: list[str]) -> None:
    assert [word for word in told if word not in session[what]] == [], session[what]
