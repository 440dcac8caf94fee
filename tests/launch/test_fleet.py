"""The fleet: its settings, and two real replicas whose scores are the local ones. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'dina-lrm[ray]'")

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray warns at import, and warnings are errors here."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_fleet_takes_words_and_is_refused_without_keys():
    begin = "from dina_lrm.launch.fleet import FleetSettings; settings = FleetSettings(model='m', num_gpus='0.5');"
    ran = run("-c", f"{begin} print(settings.source().device); settings.server()")
    assert ran.stdout.strip() == "cuda"
    assert ran.returncode == 1 and "no API key is set" in ran.stderr


@pytest.mark.slow
def test_two_replicas_score_as_one_model_does(golden_model):
    ran = run("-m", "tests.launch.two_replicas")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    latents = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, reward in enumerate(told["rewards"]):
        local = golden_model.score(prompts=["a cat"], latents=latents[i : i + 1], sigmas=(0.2, 0.5), seed=i)
        assert reward == pytest.approx(local.reward.item(), abs=1e-5)
    assert told["running"] == 2
