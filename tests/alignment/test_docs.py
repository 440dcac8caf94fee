"""What docs/alignment.md says runs, and names what is there."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from diffusers import DiffusionPipeline

from dina_lrm.alignment import AlignConfig
from dina_lrm.alignment.aligner import MEASUREMENTS, Aligner
from dina_lrm.alignment.config import AlgorithmConfig
from dina_lrm.cli.recipes import find_recipe
from dina_lrm.config import apply_overrides, parse_config
from dina_lrm.scoring import RewardModel
from tests.alignment.tiny import configured, make_world

PAGE = (Path(__file__).parents[2] / "docs" / "alignment.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SETTINGS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
COMMANDS = re.findall(r"dina-lrm align ([^\n`]*)", PAGE)


def test_the_lines_run(tmp_path, monkeypatch) -> None:
    world = make_world(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(world / "base")
    names: dict[str, Any] = dict(
        pipeline=pipeline,
        score_functions={},
        model=RewardModel.from_pretrained(world / "reward", base=pipeline),
    )
    run = Aligner(configured(world, tmp_path / "runs" / "align-emoji-refl"), quiet=True).run()
    assert run.adapter.name == "adapter" and len(SNIPPETS) == 3
    monkeypatch.chdir(tmp_path)
    for snippet in sorted(SNIPPETS, key=lambda snippet: "load_lora" in snippet):  # a policy wants a bare pipeline
        small = snippet.replace("worlds/emoji/pipeline", str(world / "base")).replace("(28,", "(4,")
        small = small.replace("worlds/emoji/reward", str(world / "reward")).replace("24, 25, 26, 27", "2, 3")
        exec(compile(small, "docs/alignment.md", "exec"), names)
    assert names["pipeline"].get_active_adapters() and callable(names["score_functions"]["dina"]("cpu"))
    learned = Path("runs/own-loop/pytorch_lora_weights.safetensors")
    assert learned.is_file() and torch.isfinite(names["loss"])


def test_every_command_names_a_recipe_and_keys_that_are_there() -> None:
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        name, *words = command.split()
        if name == "RECIPE":
            continue
        config = find_recipe(name, AlignConfig)
        apply_overrides(config, [word for before, word in zip(words, words[1:], strict=False) if before == "--set"])


def test_the_configuration_is_one_and_the_other_trainers_find_their_functions() -> None:
    ours, verl, factory = SETTINGS
    config = parse_config(AlignConfig, ours, "docs/alignment.md")
    assert [reward.kind for reward in config.rewards] == ["latent", "server", "factory", "factory"]
    assert callable(import_module("dina_lrm.launch.actor").reward_actor)
    named = verl["reward"]["reward_functions"]["dina"]
    assert callable(getattr(import_module(named["path"].removeprefix("pkg://")), named["name"]))
    module, _, name = factory["rewards"][0]["reward_model"].rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_every_algorithm_and_every_recipe_of_a_real_base_has_its_row() -> None:
    kinds = {get_args(cls.model_fields["kind"].annotation)[0] for cls in AlgorithmConfig.__subclasses__()}
    assert kinds == set(re.findall(r"^\| `(\w+)` \| (?:climbed|not needed)", PAGE, re.M))
    recipes = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")
    for path in (Path(__file__).parents[2] / "recipes").glob("*.py"):
        assert path.stem in recipes, f"recipes/README.md does not name {path.stem}"


def test_what_a_run_leaves_is_what_the_loop_says() -> None:
    told = set(re.findall(r"^OUT/([\w.]+)", PAGE, re.M))
    assert {f"{MEASUREMENTS}", "adapter", "adapters", "samples", "checkpoints", "cache", "index.html"} <= told


def test_the_costs_are_those_of_the_result_file() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "alignment.full.json"
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["kind"] == "counted":
            assert f"{row['GB at peak']:.1f} + {row['GB held']:.1f} = {row['GB']:.1f}" in PAGE
        elif row["update"] == "ours":
            assert f"| {row['algorithm']}: ours | {row['CPU seconds']:.1f} s |" in PAGE
        elif row["update"] == "naive":
            told = f"{row['time over ours']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
            assert f"| {row['algorithm']}: naive | {told} |" in PAGE
            assert f"| {row['bytes over ours']:.2f} | {row['FLOPs over ours']:.2f} |" in PAGE
