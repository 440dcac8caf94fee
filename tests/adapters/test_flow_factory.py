"""Flow-Factory's contract: a class made from a configuration and an accelerator, called with fields of its samples."""

import importlib
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dina_lrm.adapters.flow_factory import DinaReward
from dina_lrm.errors import ConfigError, ImageError, ShapeError
from dina_lrm.scoring.client import RewardClient
from tests.adapters.fake import brightness
from tests.golden_fixtures import PIPELINE, PUBLISHED

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"))


def config(**changes):
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, batch_size=2, **changes)


def fields_of(call, sample):
    """The trainer passes those of a sample's fields that the call names, and all the rest if it takes any."""
    parameters = inspect.signature(call).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return sample
    return {name: value for name, value in sample.items() if name in {parameter.name for parameter in parameters}}


def test_the_trainer_makes_it_and_scores_samples_with_it(model, pictures):
    reward = DinaReward(config(value="utility"), ACCELERATOR, model)
    assert reward.required_fields == ("prompt", "image") and reward.use_tensor_inputs is False
    assert reward.device == torch.device("cpu") and reward.model is None
    samples = [dict(prompt="a" * (n + 1), image=picture, metadata="{}") for n, picture in enumerate(pictures)]
    batch = {name: [sample[name] for sample in samples] for name in fields_of(reward.__call__, samples[0])}
    output = reward(**batch)
    rewards = torch.as_tensor(output.rewards, device="cpu", dtype=torch.float32)
    assert rewards.tolist() == pytest.approx([brightness(p) + 1 + n for n, p in enumerate(pictures)])
    assert output.extra_info.keys() == {"utility", "standard_error", "sigmas", "seed"}


def test_the_call_names_what_the_trainer_names():
    names = list(inspect.signature(DinaReward.__call__).parameters)
    assert names == ["self", "prompt", "image", "video", "audio", "condition_images", "condition_videos", "kwargs"]


def test_the_configuration_says_whom_and_how_to_ask(golden_model, pictures):
    url = "http://127.0.0.1:8000"
    there = DinaReward(config(server_url=url, server_model="tiny", sigmas=[0.2, 0.5], draws=2, seed=3), ACCELERATOR)
    assert isinstance(there.function, RewardClient) and there.function.address.model == "tiny"
    assert (there.asking.sigmas, there.asking.draws, there.asking.seed) == ((0.2, 0.5), 2, 3)
    here = DinaReward(config(model_path=str(PUBLISHED), base_path=str(PIPELINE)), ACCELERATOR)
    own = golden_model.score(prompts=["a"] * 3, images=pictures)
    assert torch.allclose(here(prompt=["a"] * 3, image=pictures).rewards, own.reward, atol=1e-5)
    assert isinstance(here.model, torch.nn.Module)
    with pytest.raises(ConfigError, match="server_url or a model_path"):
        DinaReward(config(), ACCELERATOR)


def test_what_cannot_be_scored_raises(model, black):
    reward = DinaReward(config(), ACCELERATOR, model)
    with pytest.raises(ShapeError, match="2 prompts need as many images, got none"):
        reward(prompt=["a", "b"], video=[[black]])
    with pytest.raises(ShapeError, match="2 prompts need as many images, got 1"):
        reward(prompt=["a", "b"], image=[black])
    with pytest.raises(ImageError):
        reward(prompt=["a"], image=[black])


def test_where_the_trainer_is_installed_the_class_is_one_of_its_own(tmp_path):
    """In an interpreter of its own, with a stand-in of the documented names."""
    package = tmp_path / "flow_factory" / "rewards"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "abc.py").write_text(
        "from abc import ABC, abstractmethod\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class RewardModelOutput:\n"
        "    rewards: object\n"
        "    extra_info: object = None\n"
        "class BaseRewardModel(ABC):\n"
        "    required_fields = ()\n"
        "    def __init__(self, config, accelerator):\n"
        "        self.config, self.accelerator, self.device, self.dtype = config, accelerator, config.device, config.dtype\n"
        "        self.model = None\n"
        "class PointwiseRewardModel(BaseRewardModel):\n"
        "    @abstractmethod\n"
        "    def __call__(self, prompt, image=None, **kwargs): ...\n"
    )
    script = (
        "from types import SimpleNamespace as N\n"
        "from flow_factory.rewards.abc import PointwiseRewardModel, RewardModelOutput\n"
        "from PIL import Image\n"
        "from dina_lrm.adapters.flow_factory import DinaReward\n"
        "from tests.adapters.fake import FakeModel\n"
        "made = DinaReward(N(device='cpu', dtype=None), None, FakeModel())\n"
        "assert isinstance(made, PointwiseRewardModel)\n"
        "assert isinstance(made(prompt=['a'], image=[Image.new('RGB', (8, 8), 'red')]), RewardModelOutput)\n"
    )
    root = str(importlib.import_module("tests").__path__[0]).removesuffix("tests")
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": f"{tmp_path}:{root}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
