"""`train` up to the trainer's door, and `demo` up to the demo's: what happens inside has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dina_lrm.cli.recipes as recipes
import dina_lrm.training
from dina_lrm.errors import ConfigError
from dina_lrm.training import TrainConfig

RECIPE = """
from dina_lrm.training import TrainConfig

def recipe():
    return TrainConfig(data="preferences", base="pipeline", out="runs/mine", num_steps=3)

def wrong():
    return TrainConfig(data="preferences", base="pipeline", out="runs/mine", num_steps=3, epocs=1)

def nothing():
    return None

number = 3
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)


class Recorded:
    """A trainer that only notes what it was to do."""

    def __init__(self) -> None:
        self.config: TrainConfig | None = None
        self.resume: Any = "never run"

    def __call__(self, config: TrainConfig) -> Recorded:
        self.config = config
        return self

    def run(self, resume: Any = None) -> Path:
        assert self.config is not None
        self.resume = resume
        return self.config.out / "model"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(dina_lrm.training, "Trainer", recorded)
    return recorded


def test_recipe_overrides_and_out(dina, trainer: Recorded) -> None:
    ran = dina(
        "train", "mine.py", "--set", "optimiser.learning_rate=1e-4", "--set", "head.kind=mean_pool", "--out", "a b"
    )
    assert (ran.status, ran.out, ran.err) == (0, "a b/model\n", "")
    assert trainer.config is not None and trainer.resume is None
    assert (trainer.config.optimiser.learning_rate, trainer.config.head.kind) == (1e-4, "mean_pool")
    assert trainer.config.num_steps == 3


@pytest.mark.parametrize(("text", "resume"), [("auto", "auto"), ("runs/x", Path("runs/x"))])
def test_resume(dina, trainer: Recorded, text: str, resume: object) -> None:
    ran = dina("train", "mine.py", "--resume", text, "--json")
    assert json.loads(ran.out) == {"model": "runs/mine/model", "out": "runs/mine"}
    assert trainer.resume == resume


def test_a_configuration_file(dina, trainer: Recorded) -> None:
    values = {"data": "d", "base": "b", "out": "o", "num_epochs": "5e-1"}
    Path("run.json").write_text(json.dumps(values))
    assert dina("train", "run.json").status == 0
    assert trainer.config == TrainConfig(data=Path("d"), base="b", out=Path("o"), num_epochs=0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tinny"], "did you mean tiny?"),
        (["none.py"], "none.py"),
        (["none.yaml"], "none.yaml"),
        (["none.module:recipe"], "none"),
        (["json:dumpss"], "dumpss"),
        (["mine.py", "--set", "optimiser.learning_rat=1"], "did you mean learning_rate"),
        (["mine.py", "--set", "num_steps"], "path.to.key=value"),
        (["mine.py", "--set", "num_epochs=1"], "one of num_steps and num_epochs"),
    ],
)
def test_wrong_input_is_one_line_and_2(dina, trainer: Recorded, arguments: list[str], says: str) -> None:
    ran = dina("train", *arguments)
    assert ran.status == 2 and says in ran.one_line()
    assert trainer.resume == "never run"


def test_names_beside_the_package_and_here() -> None:
    assert "tiny" in recipes.recipe_names()
    Path("recipes").mkdir()
    Path("recipes/mine.py").write_text(RECIPE)
    assert {"mine", "tiny"} <= set(recipes.recipe_names())
    assert recipes.read_recipe("mine", TrainConfig).out == Path("runs/mine")


def test_module_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_recipes")
    exec(RECIPE, module.__dict__)
    monkeypatch.setitem(__import__("sys").modules, "my_recipes", module)
    assert recipes.read_recipe("my_recipes:recipe", TrainConfig).num_steps == 3
    with pytest.raises(ConfigError, match='unknown key "epocs"'):
        recipes.read_recipe("my_recipes:wrong", TrainConfig)
    with pytest.raises(ConfigError, match="must return a configuration of class TrainConfig, got NoneType"):
        recipes.read_recipe("my_recipes:nothing", TrainConfig)
    with pytest.raises(ConfigError, match="no function 'number'"):
        recipes.read_recipe("my_recipes:number", TrainConfig)


@pytest.mark.parametrize(("flags", "fast"), [([], False), (["--fast"], True)])
def test_demo(dina, monkeypatch: pytest.MonkeyPatch, flags: list[str], fast: bool) -> None:
    import dina_lrm.demo

    asked = []

    def run_demo(out: Path, **options: Any) -> Path:
        asked.append((out, options))
        return out / "report.html"

    monkeypatch.setattr(dina_lrm.demo, "run_demo", run_demo)
    assert dina("demo", "--out", "there", "--seed", 2, *flags).out.splitlines()[-1] == "there/report.html"
    assert asked[0][0] == Path("there") and asked[0][1]["fast"] is fast and asked[0][1]["seed"] == 2
    row = json.loads(dina("demo", "--json", *flags).out)
    assert row == {"report": "runs/demo/report.html", "results": "runs/demo/results.json"}
