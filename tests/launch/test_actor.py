"""A reward as an actor: one conformance suite with every other, over what Ray does to a question; and with Ray itself."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import pytest
import torch

from dina_lrm.alignment.rewards import AWAY
from dina_lrm.errors import ConfigError, NoAnswerError, WorkError
from dina_lrm.launch.actor import Asked, RewardActor, reward_actor
from dina_lrm.types import NoisedState
from tests.conformance.reward_functions import RewardFunctionSuite

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'dina-lrm[ray]'")


def beside(model) -> RewardActor:
    """An actor without Ray: question and answer are copied, as they are between processes."""
    asked, line = Asked(lambda: model), Lock()

    def call(*question):
        with line:  # an actor answers one question after the other
            return pickle.loads(pickle.dumps(asked.ask(*pickle.loads(pickle.dumps(question)))))

    return RewardActor(call)


class TestActor(RewardFunctionSuite):
    """In another process, as good as."""

    @pytest.fixture
    def function(self, golden_model):
        return beside(golden_model)

    def test_a_gradient_is_refused(self, function, latents, text) -> None:
        learned = latents.clone().requires_grad_()
        with pytest.raises(ConfigError, match="none comes back from an actor"):
            function.score(conditioning=text, latents=learned)
        with pytest.raises(ConfigError, match="none comes back from an actor"):
            function.score_state(NoisedState(learned, torch.full((3,), 0.5)), text)

    def test_a_group_encodes_its_prompt_once(self, function, model, latents, monkeypatch) -> None:
        seen: list[list[str]] = []
        encode = model.network.backbone.encode_prompts
        monkeypatch.setattr(
            type(model.network.backbone),
            "encode_prompts",
            lambda self, prompts, length=None: (seen.append(list(prompts)), encode(prompts, length))[1],
        )
        ours = function.score(prompts=["a cat", "a dog", "a cat"], latents=latents)
        assert seen == [["a cat", "a dog"]]
        theirs = model.score(prompts=["a cat", "a dog", "a cat"], latents=latents)
        assert torch.allclose(ours.reward, theirs.reward, atol=1e-5)


def test_what_fails_otherwise_is_a_work_error_in_words() -> None:
    class Broken:
        def score(self, **asked: object) -> None:
            raise RuntimeError("CUDA has gone")

    actor = beside(Broken())
    with pytest.raises(WorkError, match="RuntimeError: CUDA has gone") as told:
        actor.score(prompts=["a"], latents=torch.zeros(1, 16, 8, 8))
    assert not isinstance(told.value, NoAnswerError)  # nobody is to wait for it


def test_a_model_that_cannot_be_loaded_is_refused_when_it_is_made() -> None:
    def load():
        raise ConfigError("there is no such model")

    with pytest.raises(ConfigError, match="no such model"):
        RewardActor(Asked(load).ask).ready()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'dina-lrm\[ray\]'"):
        reward_actor("m")


@needs_ray
@pytest.mark.slow
def test_a_real_actor_answers_dies_and_comes_back(golden_model) -> None:
    assert NoAnswerError in AWAY  # the loop waits and asks again
    run = [sys.executable, "-m", "tests.launch.one_actor"]
    ran = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    latents = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    local = golden_model.score(prompts=["a cat"], latents=latents, sigmas=(0.2, 0.5), seed=7).reward.tolist()
    for answer in ("rewards", "again", "back"):
        assert told[answer] == pytest.approx(local, abs=1e-5), answer
    assert told["differentiable"] is False and "1.5" in told["wrong"] and "/nowhere/at-all" in told["missing"]
    assert "gave no answer" in told["dead"] and "gave no answer" in told["gone"]
