"""Run by test_actor.py in a process of its own: a reward actor answers, dies and comes back; what was seen is printed as JSON."""

from __future__ import annotations

import json
import os
import time
import warnings

import pytest
import ray
import torch

from dina_lrm.alignment.assemble import build_term
from dina_lrm.alignment.config import FactoryRewardConfig
from dina_lrm.alignment.rewards import Finished
from dina_lrm.errors import CheckpointError, NoAnswerError, ValueRangeError
from dina_lrm.launch.actor import RewardActor, reward_actor
from tests.golden_fixtures import PIPELINE, PUBLISHED

OPTIONS = dict(model=str(PUBLISHED), base=str(PIPELINE))


def refused(kind: type[Exception], ask) -> str:
    with pytest.raises(kind) as told:
        ask()
    assert told.type is kind
    return str(told.value)


def main() -> None:
    warnings.simplefilter("ignore")
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False, namespace="dina-lrm")
    make = "dina_lrm.launch.actor:reward_actor"
    config = FactoryRewardConfig(make=make, reads="latents", options={**OPTIONS, "name": "shared"}, sigmas=(0.2, 0.5))
    term = build_term(config, policy=None, texts=(), run=None)
    again = reward_actor(**OPTIONS, name="shared")
    latents = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = Finished(latents, ("a cat",) * 3, decode=torch.zeros_like, seeds=(7,) * 3, group_size=3)
    told = {"rewards": term(samples).reward.tolist(), "differentiable": term.differentiable}
    told["again"] = again.score(prompts=["a cat"] * 3, latents=latents, sigmas=(0.2, 0.5), seed=7).reward.tolist()
    told["wrong"] = refused(ValueRangeError, lambda: again.score(prompts=["a"], latents=latents, sigmas=(1.5,)))
    told["missing"] = refused(CheckpointError, lambda: reward_actor("/nowhere/at-all", str(PIPELINE)))
    actor = ray.get_actor("shared")
    os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), 9)
    told["dead"] = refused(NoAnswerError, lambda: term(samples))
    began, asked = time.monotonic(), 0
    while time.monotonic() - began < 60:
        asked += 1
        try:
            told["back"] = term(samples).reward.tolist()
            break
        except NoAnswerError:
            time.sleep(0.5)
    ray.kill(actor)
    told["gone"] = refused(NoAnswerError, lambda: term(samples))
    assert isinstance(again, RewardActor)
    ray.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
