"""The public names: importable, sorted, and without torch until one is used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import dina_lrm

PACKAGES = [
    "dina_lrm",
    *(f"dina_lrm.{m.name}" for m in pkgutil.iter_modules(dina_lrm.__path__) if not m.name.startswith("_")),
]
VERBS = ("demo", "train", "sample", "score", "compare", "convert", "info", "verify")


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_importable(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert len(names) == len(set(names))  # ruff's RUF022 holds their order
    for public in names:
        assert getattr(module, public) is not None


def test_public_names_are_as_promised() -> None:
    promised = {
        "Calibration",
        "Comparison",
        "Conditioning",
        "Features",
        "NoisedState",
        "PreferenceBatch",
        "Ranking",
        "Reward",
    }
    assert promised | {"DinaError", "RewardModel", "__version__"} <= set(dina_lrm.__all__)
    assert set(dina_lrm.__all__) == {*dina_lrm._HOMES, "__version__"}
    assert dina_lrm.__all__ == sorted(dina_lrm.__all__)
    assert set(dina_lrm.__all__) <= set(dir(dina_lrm))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Rewards'"):
        dina_lrm.Rewards  # noqa: B018


def test_every_error_is_public() -> None:
    from dina_lrm import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised == {name for name in dina_lrm.__all__ if name.endswith(("Error", "Warning"))}


def test_help_of_every_verb_leaves_torch_alone() -> None:
    """One interpreter for all: whatever verb imports torch is caught."""
    program = f"""
import contextlib, io, sys
import dina_lrm
from dina_lrm.cli.main import run
heavy = ("torch", "diffusers", "transformers", "numpy", "pyarrow", "matplotlib")
for verb in ([], *([verb] for verb in {VERBS!r})):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert run([*verb, "--help"]) == 0
    assert "Usage" in text.getvalue(), text.getvalue()
    loaded = [name for name in heavy if name in sys.modules]
    assert not loaded, (verb, loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_asking_what_a_folder_is_loads_no_diffusion_library(verb: str) -> None:
    """Seconds, for whoever only wants to look."""
    program = f"""
import sys
from dina_lrm.cli.main import run
assert run(["{verb}", "tests/golden/sd3-tiny/reward"]) == 0
print([name for name in ("diffusers", "transformers", "peft") if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
