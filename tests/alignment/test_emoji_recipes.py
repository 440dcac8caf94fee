"""The recipes of the emoji world: built as they stand, and one of them run small on the real world."""

from __future__ import annotations

import json

import pytest

from dina_lrm.alignment import AlignConfig, Aligner
from dina_lrm.cli.recipes import read_recipe
from dina_lrm.errors import ConfigError
from dina_lrm.training import TrainConfig


@pytest.mark.parametrize("name", ["refl", "draft", "flow_grpo", "nft", "dpo", "step_dpo"])
def test_a_recipe_is_built(name) -> None:
    config = read_recipe(f"recipes.align_emoji_{name}", AlignConfig)
    assert config.algorithm.kind == name and config.num_updates % config.evaluation.every == 0
    assert config.evaluation.prompts != config.prompts and config.evaluation.judges[0].name == "oracle"


def test_a_recipe_learns_from_the_worlds_reward_and_is_judged_by_its_oracle(tmp_path) -> None:
    changes = [
        "num_updates=2",
        "prompts_per_update=2",
        "evaluation.every=2",
        "evaluation.num_prompts=3",
        "evaluation.sigmas=[0.4]",
        "monitor.action=warn",
    ]
    config = read_recipe("align_emoji_refl", AlignConfig, changes, tmp_path / "run")
    found = Aligner(config, quiet=True).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "evaluation"][-1]
    assert last["step"] == 2 and last["gain/dina"] != 0 and 0 < last["judge/oracle"] < 9
    assert found.adapter.is_dir()


def test_a_recipe_for_the_other_verb_is_refused_and_the_verb_named() -> None:
    with pytest.raises(ConfigError, match="that is one for `dina-lrm align`"):
        read_recipe("align_emoji_refl", TrainConfig)
    with pytest.raises(ConfigError, match="that is one for `dina-lrm train`"):
        read_recipe("tiny", AlignConfig)
