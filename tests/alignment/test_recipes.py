"""The recipes for real generators, each on a tiny pipeline of the same class: built as they stand, then learned from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dina_lrm.alignment import AlignConfig, Aligner
from dina_lrm.backbones.network import JOINT_ATTENTION
from dina_lrm.cli.recipes import read_recipe
from dina_lrm.config import apply_overrides
from tests.alignment.tiny import make_world

SD35, FLUX = ("sd35", "sd3"), ("flux", "flux")
SMALL = "{num_steps: 3, guidance: %s, height: 64, width: 64}"
# bfloat16 is slow on a CPU: two of four show that it goes through.
SINGLE = ["dtype=float32", "mixed_precision=no"]
# Kind of pipeline and of backbone; the rollout's guidance; what is made smaller. The rest stays as published.
CASES = {
    "refl_sd35m": (SD35, 4.5, []),
    "flow_grpo_sd35m": (SD35, 4.5, ["algorithm.group_size=3", "micro_batches=2", *SINGLE]),
    "nft_sd35m": (SD35, 1.0, ["algorithm.group_size=3", "prompts_per_update=2", "algorithm.noisings=2", *SINGLE]),
    "draft_flux": (FLUX, 1.0, []),
}
SMALLER = ["micro_batches=1", "prompts_per_update=1", "num_updates=2", "adapter.rank=2", "device=cpu"]
LOOK = ["evaluation.every=2", "evaluation.num_prompts=2", "evaluation.sigmas=[0.4]", "evaluation.grid=2"]


def published(name: str) -> AlignConfig:
    return read_recipe(name, AlignConfig)


def images_an_update(config: AlignConfig, processes: int = 8) -> int:
    size = config.prompts_per_update * config.micro_batches * processes
    return size * config.algorithm.build().group_size


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> dict[tuple[str, str], Path]:
    return {both: make_world(tmp_path_factory.mktemp(both[0]), *both) for both in (SD35, FLUX)}


@pytest.mark.parametrize("name", CASES)
def test_what_is_published_and_shared_by_all(name) -> None:
    config = published(name)
    assert not Path(config.base).exists() and config.base.count("/") == 1
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.target_modules) == (32, 64, None)
    assert len(JOINT_ATTENTION) == 8  # what None means: all projections of both streams' attention
    assert (config.sampler.height, config.sampler.width) == (512, 512)
    assert config.optimiser.weight_decay == 1e-4 and config.optimiser.max_grad_norm == 1.0
    assert (
        config.optimiser.betas == (0.9, 0.999) and config.schedule.kind == "constant" and config.schedule.warm_up == 0
    )
    assert config.ema_decay == pytest.approx(0.9 ** (1 / 8), abs=1e-3)
    assert [reward.sigmas for reward in config.rewards] == [(0.4,)] and config.normalise == "none"
    assert config.gradient_checkpointing and (config.dtype, config.mixed_precision) == ("bfloat16", "bf16")


def test_refl_says_what_was_published() -> None:
    config = published("refl_sd35m")
    algorithm = config.algorithm.build()
    assert (algorithm.late, algorithm.kl, algorithm.pretraining) == (0.25, 0.0, 0.0)
    steps = config.sampler.num_steps
    assert steps - round(algorithm.late * steps) == 30 and steps == 40  # 30 to 39 of 40
    assert config.sampler.guidance == 4.5 and config.optimiser.learning_rate == 1e-4
    assert config.rewards[0].weight == 0.1 and config.num_updates == 150 and images_an_update(config) == 256


def test_flow_grpo_says_what_was_published() -> None:
    config = published("flow_grpo_sd35m")
    algorithm = config.algorithm.build()
    assert algorithm.noise.level == 0.7 and type(algorithm.noise).__name__ == "FlowNoise" and algorithm.window is None
    assert (algorithm.group_size, algorithm.clip, algorithm.kl, algorithm.epochs) == (24, 1e-4, 0.01, 1)
    assert (algorithm.spread, algorithm.advantage_limit) == ("group", 5.0)
    assert (config.sampler.num_steps, config.sampler.guidance) == (10, 4.5)
    assert (config.evaluation.sampler.num_steps, config.evaluation.sampler.guidance) == (40, 4.5)
    assert config.optimiser.learning_rate == 3e-4 and images_an_update(config) == 24 * 24


def test_the_fast_variant_is_as_its_recipe_tells_it() -> None:
    told = read_recipe("flow_grpo_sd35m", AlignConfig)
    text = Path("recipes/flow_grpo_sd35m.py").read_text(encoding="utf-8")
    words = text.split("The fast variant is:")[1].split('"""')[0].replace("`", " ").replace("--set", " ")
    algorithm = apply_overrides(told, [word for word in words.split() if "=" in word]).algorithm.build()
    assert (algorithm.window, algorithm.clip, algorithm.kl) == (3, 1e-5, 0.0)
    assert type(algorithm.noise).__name__ == "CpsNoise" and algorithm.noise.level == 0.8


def test_nft_says_what_was_published() -> None:
    config = published("nft_sd35m")
    algorithm = config.algorithm.build()
    assert (algorithm.group_size, algorithm.strength, algorithm.kl, algorithm.decay) == (24, 1.0, 1e-4, 1)
    assert (algorithm.passes, algorithm.noisings, algorithm.advantage_limit) == (1, 9, 5.0)
    assert (config.sampler.num_steps, config.sampler.guidance) == (10, 1.0)
    assert (config.evaluation.sampler.num_steps, config.evaluation.sampler.guidance) == (40, 1.0)
    assert config.optimiser.learning_rate == 3e-4 and images_an_update(config) == 48 * 24


def test_draft_on_flux_says_where_each_number_is_from() -> None:
    config = published("draft_flux")
    algorithm = config.algorithm.build()
    assert (algorithm.last_steps, algorithm.noisings, algorithm.kl) == (1, 0, 0.0)
    assert (config.sampler.num_steps, config.sampler.guidance) == (28, 1.0)  # distilled guidance is the network's own
    assert config.optimiser.learning_rate == 1e-4 and images_an_update(config) == 64
    assert config.num_updates == 150 and config.rewards[0].weight == 0.1


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_learns_and_its_adapter_loads_in_diffusers(name, worlds, tmp_path) -> None:
    kind, guidance, smaller = CASES[name]
    world = worlds[kind]
    sampler = SMALL % guidance
    places = [
        f"base={world / 'base'}",
        f"out={tmp_path / 'run'}",
        f"prompts.path={world / 'prompts.txt'}",
        f"evaluation.prompts.path={world / 'prompts.txt'}",
        f"rewards.0.model={world / 'reward'}",
        f"sampler={sampler}",
        f"evaluation.sampler={sampler}",
        "max_sequence_length=32",
        "optimiser.learning_rate=1e-2",
        "monitor.action=warn",
    ]
    config = apply_overrides(published(name), [*SMALLER, *LOOK, *places, *smaller])
    found = Aligner(config, quiet=True).run()
    assert found.adapter == config.out / "adapter" and found.step == 2
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if row["kind"] == "update"]
    assert [row["step"] for row in updates] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["judged"] == 1 for row in updates)
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [0, 2]
    pipeline = DiffusionPipeline.from_pretrained(world / "base")
    pipeline.load_lora_weights(found.adapter)
    held = [value for key, value in pipeline.transformer.named_parameters() if "lora_B" in key]
    assert held and all(torch.isfinite(value).all() for value in held)
    assert any(value.abs().max() > 0 for value in held)
