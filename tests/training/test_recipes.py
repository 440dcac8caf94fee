"""The tiny recipe on the golden pipeline: a real SD3 transformer with LoRA, from prompts to a model that scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dina_lrm.cli.recipes import read_recipe
from dina_lrm.data import Candidate, PreferencePair, write_preference_data
from dina_lrm.scoring import RewardModel
from dina_lrm.training import TrainConfig, Trainer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    latents = torch.randn(16, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    candidates = [Candidate(f"c{i}", f"prompt {i // 2 % 2}", i) for i in range(16)]
    pairs = [PreferencePair(f"prompt {i % 2}", f"c{2 * i}", f"c{2 * i + 1}", 7, 2) for i in range(8)]
    folder = tmp_path / "preferences"
    write_preference_data(folder, candidates, latents, {"train": pairs[:4], "validation": pairs[4:]}, "tiny")
    return folder


def test_the_tiny_recipe_trains_a_model_that_loads_and_scores(data: Path, golden: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    shutil.copytree(golden / "pipeline", pipeline)
    config = read_recipe("tiny", TrainConfig).model_copy(
        update={"data": data, "base": str(pipeline), "out": tmp_path / "run", "num_steps": 4}
    )
    trainer = Trainer(config, quiet=True)
    folder = trainer.run()
    assert trainer.network is not None
    adapter = trainer.network.backbone.adapter_state()
    assert any(name.endswith("lora_B.weight") and value.abs().max() > 0 for name, value in adapter.items())
    model = RewardModel.from_pretrained(folder, merge_adapter=False)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    conditioning = model.encode_prompts(["prompt 0", "prompt 1"])
    state = model.network.backbone.process.add_noise(latents, torch.zeros_like(latents), torch.tensor([0.1, 0.7]))
    with torch.no_grad():
        loaded, in_memory = model.utility(state, conditioning), trainer.network(state, conditioning)
    assert torch.equal(loaded, in_memory)
    provenance = json.loads((folder / "config.json").read_text())["provenance"]
    assert provenance["weights"] == "ema"
    assert provenance["steps"] == 4
    assert provenance["training"]["backbone"]["adapter"]["rank"] == 2
