"""Flow-Factory's contract: a class made from a configuration and an accelerator, called with fields of its samples."""

import importlib
import inspect
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from dina_lrm.adapters.flow_factory import DinaReward
from dina_lrm.errors import ConfigError, ImageError, ShapeError, ValueRangeError
from dina_lrm.noise import Adaptive
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


@dataclass
class Arguments:
    """Of a version that keeps what it does not know in a field of its own."""

    name: str = "dina"
    device: torch.device = torch.device("cuda")
    dtype: torch.dtype = torch.float32
    newer_field_of_theirs: int = 3
    extra_kwargs: dict = field(default_factory=dict)


def test_all_of_what_an_asking_says_is_read(model, pictures):
    said = dict(sigmas=[0.2, 0.5], draws=2, fusion="tokens", antithetic=True, seed=7, value="utility")
    for held in (config(**said), Arguments(extra_kwargs=said), config(reward_model_kwargs=said)):
        DinaReward(held, ACCELERATOR, model)(prompt=["a"] * 3, image=pictures)
        call = model.calls.pop()
        assert {name: call[name] for name in said if name != "value"} == {
            **{name: said[name] for name in said if name != "value"},
            "sigmas": (0.2, 0.5),
        }


def test_one_level_and_a_budget_of_draws_may_be_said(model):
    asking = DinaReward(config(sigmas=0.3, draws=dict(max_draws=8, standard_error=0.1)), ACCELERATOR, model).asking
    assert asking.sigmas == (0.3,) and asking.draws == Adaptive(max_draws=8, standard_error=0.1)
    assert DinaReward(config(seed=None), ACCELERATOR, model).asking.seed is None
    assert DinaReward(config(fusion=None), ACCELERATOR, model).asking.fusion == "mean"


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (dict(draws=0), ValueRangeError, "draws must be 1 or more, got 0"),
        (dict(draws=dict(most=3)), ConfigError, "settings of Adaptive.*most"),
        (dict(sigmas="low"), ConfigError, "sigmas must be a number, got 'low'"),
        (dict(sigmas=[2.0]), ValueRangeError, "levels in"),
        (dict(fusion="sum"), ConfigError, "fusion must be one of"),
        (dict(antithetic="yes"), ConfigError, "antithetic must be true or false, got 'yes'"),
        (dict(seed="a"), ConfigError, "seed must be a whole number or null, got 'a'"),
        (dict(drawz=2), ConfigError, "not known: drawz; there are antithetic"),
    ],
)
def test_settings_that_cannot_be_kept_to_are_refused(model, said, error, message):
    for held in (config(**said), Arguments(extra_kwargs=said)):
        with pytest.raises(error, match=message):
            DinaReward(held, ACCELERATOR, model)


def test_where_the_trainer_is_not_installed_it_moves_all_the_same(model):
    reward = DinaReward(config(), ACCELERATOR, model)
    assert reward.to(torch.device("meta")) is reward and reward.device == torch.device("meta")
    reward.model = torch.nn.Linear(2, 2)
    reward.to("meta")
    assert reward.model.weight.device == torch.device("meta")
