"""Fixtures on the golden vectors: what the authors' release computes on a tiny Stable Diffusion 3 pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dina_lrm.scoring import RewardModel

FOLDER = Path(__file__).parent / "golden" / "sd3-tiny"
PIPELINE = FOLDER / "pipeline"
PUBLISHED = FOLDER / "reward"


@pytest.fixture(scope="session")
def cases() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


@pytest.fixture(scope="session")
def case_settings() -> dict:
    return json.loads((FOLDER / "cases.json").read_text())


@pytest.fixture(scope="session")
def golden_model() -> RewardModel:
    return RewardModel.from_pretrained(PUBLISHED, base=str(PIPELINE))


@pytest.fixture(scope="session")
def golden_conditioning(golden_model, case_settings):
    return golden_model.encode_prompts(case_settings["prompts"], 128)
