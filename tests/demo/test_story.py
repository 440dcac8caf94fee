"""The demo from end to end, on a world of seconds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from dina_lrm.demo import run_demo
from dina_lrm.errors import DataError, InputError
from dina_lrm.report import DemoResults
from dina_lrm.scoring import RewardModel

from .conftest import TINY

pytest.importorskip("matplotlib")


def tell(world: Path, out: Path) -> list[str]:
    lines: list[str] = []
    report = run_demo(out, log=lines.append, world=world, budget=TINY, quiet=True)
    assert report == (out / "report.html").resolve()
    return lines


@pytest.fixture(scope="module")
def told(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, tell(world, out)


def test_the_story_has_numbered_steps_and_a_table(told):
    _, lines = told
    heads = [line for line in lines if line.startswith("[")]
    assert [line[1] for line in heads] == list("12345678")
    assert any("Prompts swapped" in line for line in lines)
    assert any("Ceiling" in line for line in lines)


def test_report_and_results_agree(told):
    out, _ = told
    results = DemoResults.model_validate_json((out / "results.json").read_text())
    html = (out / "report.html").read_text()
    assert f"{100 * results.row('mean').cards['test'].accuracy.value:.1f}" in html
    assert [row.name for row in results.table] == [
        "sigma-0.1",
        "sigma-0.4",
        "tokens",
        "mean",
        "random",
        "swapped",
        "blank",
    ]
    assert results.row("swapped").cards["test"].prompts_shown == "swapped"
    assert results.world.quality == {"reconstruction of held-out art, dB": 28.5}
    assert results.world.transformer_blocks == 6 and results.world.kept_blocks == 5
    assert results.encoding.pictures == 2
    assert [run.backbone for run in results.training] == ["pretrained", "random"]
    assert [(best.n, best.prompts) for best in results.best_of] == [(3, 2), (3, 2)]
    assert len(results.times) == 7  # the report cannot know how long it takes itself


def test_the_model_can_be_loaded_and_the_named_pictures_are_there(told):
    out, _ = told
    assert RewardModel.from_pretrained(out / "model").config.backbone.depth == 5
    commands = json.loads((out / "results.json").read_text())["commands"]
    assert [command.split()[1] for command in commands] == ["score", "compare", "info"]
    assert all(Path(word).is_file() for command in commands[:2] for word in shlex.split(command) if ".png" in word)


def test_the_pictures_of_the_first_ranking_are_a_folder_for_voters(told):
    pytest.importorskip("fastapi")
    from dina_lrm.serve.arena import open_source

    out, _ = told
    source = open_source(out / "pictures")
    assert {prompt: len(candidates) for prompt, candidates in source.by_prompt.items()} == {"test thing 0": 3}
    assert len(list((out / "pictures").glob("*.png"))) == 3


def test_a_second_run_does_nothing_twice(told, world):
    out, _ = told
    before = json.loads((out / "results.json").read_text())
    lines = tell(world, out)
    assert sum("done before" in line for line in lines) == 7
    after = json.loads((out / "results.json").read_text())
    assert before["table"] == after["table"] and before["training"] == after["training"]


def test_measuring_again_does_not_train_again(told, world):
    out, _ = told
    before = json.loads((out / "results.json").read_text())
    (out / "steps" / "measure.json").unlink()
    metrics = (out / "training" / "random" / "metrics.jsonl").read_text()
    lines = tell(world, out)
    assert [line[1] for line in lines if line.startswith("[") and "done before" not in line] == ["5", "8"]
    assert (out / "training" / "random" / "metrics.jsonl").read_text() == metrics
    after = json.loads((out / "results.json").read_text())
    for old, new in zip(before["table"], after["table"], strict=True):
        assert old["cards"]["test"]["accuracy"] == new["cards"]["test"]["accuracy"]


def test_no_world(tmp_path):
    with pytest.raises(InputError, match="no emoji world"):
        run_demo(tmp_path / "out", world=tmp_path)


def test_a_world_without_a_readable_generator(tmp_path, world):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "preferences").symlink_to(world / "preferences")
    with pytest.raises(InputError, match="pipeline"):
        run_demo(tmp_path / "out", world=tmp_path, log=lambda line: None)


def test_data_errors_name_the_missing_split(tmp_path, world):
    from dina_lrm.data import PreferenceData
    from dina_lrm.demo.world import split_facts

    data = PreferenceData.open(world / "preferences")
    info = {**data.info, "counts": {**data.info["counts"], "pairs": {"train": 12}}}
    with pytest.raises(DataError, match="unseen_style|test"):
        split_facts(PreferenceData(data.folder, info), None)
