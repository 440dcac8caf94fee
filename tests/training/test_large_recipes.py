"""The recipes for real bases, each on a tiny pipeline of the same class: built as they stand, trained two steps."""

import json
from pathlib import Path

import pytest
import torch

from dina_lrm.cli.recipes import read_recipe
from dina_lrm.config import apply_overrides
from dina_lrm.data import Candidate, PreferencePair, write_preference_data
from dina_lrm.scoring import RewardModel
from dina_lrm.training import TrainConfig, Trainer
from tests.pipelines import build_pipeline

CASES = {
    "sd35m_thurstone": ("sd35", 16, ["backbone.image_taps=[1, 2]", "backbone.text_taps=[1, 2]"]),
    "flux_thurstone": ("flux", 16, ["backbone.image_taps=[1, 2, 3]", "backbone.text_taps=[1, 2, 3]"]),
    "zimage_thurstone": ("zimage", 16, ["backbone.image_taps=[1, 2, 3]", "backbone.text_taps=[1, 2, 3]"]),
    "qwen_image_thurstone": ("qwen_image", 16, ["backbone.image_taps=[1, 2, 3]", "backbone.text_taps=[1, 2, 3]"]),
    "sdxl_thurstone": ("sdxl", 4, []),
}
SMALLER = [
    "backbone.adapter.rank=2",
    "head.width=16",
    "head.num_attention_heads=2",
    "num_epochs=null",
    "num_steps=2",
    "schedule.warm_up=1",
    "validation.every=2",
    "validation.num_pairs=4",
    "save_every=0",
    "device=cpu",
]


def write_preferences(folder: Path, channels: int) -> None:
    latents = torch.randn(16, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    candidates = [Candidate(f"c{i}", "a cat" if i < 8 else "a dog in the sun", i) for i in range(16)]
    pairs = [PreferencePair(candidates[2 * i].prompt, f"c{2 * i}", f"c{2 * i + 1}", 3, 0, 0, "mixed") for i in range(8)]
    write_preference_data(folder, candidates, latents, {"train": pairs[:4], "validation": pairs[4:]}, "tiny", {})


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_and_its_model_scores(name, tmp_path):
    kind, channels, taps = CASES[name]
    write_preferences(tmp_path / "data", channels)
    base = build_pipeline(kind, tmp_path / "base")
    places = [f"data={tmp_path / 'data'}", f"base={base}", f"out={tmp_path / 'run'}"]
    folder = Trainer(apply_overrides(read_recipe(name, TrainConfig), [*SMALLER, *taps, *places]), quiet=True).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert {row["weights"] for row in rows if row["kind"] == "validation"} == {"ema"}
    assert rows[1]["lr"] == 5e-5  # the warm-up is over, so it was there
    latents = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    reward = RewardModel.from_pretrained(folder).score(prompts=["a cat"], latents=latents)
    assert torch.isfinite(reward.reward).all() and reward.reward[0] != reward.reward[1]


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_says_what_was_published(name):
    config = read_recipe(name, TrainConfig)
    assert config.ema_decay == 0.995 and config.schedule.warm_up == 1000
    assert config.dtype == "bfloat16" and config.mixed_precision == "bf16"
    assert config.optimiser.learning_rate == 5e-5 and config.optimiser.weight_decay == 0.01
    assert config.likelihood.scale == 2.0 and config.likelihood.min_variance == 0.05
    assert not Path(config.base).exists() and config.base.count("/") == 1
