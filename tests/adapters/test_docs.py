"""The lines of docs/adapters.md run, with a model of tiny size; what its configurations name is there."""

import asyncio
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from dina_lrm.scoring import RewardModel
from tests.golden_fixtures import PIPELINE, PUBLISHED

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SETTINGS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def name_of(snippet: str) -> str:
    return re.search(r"from dina_lrm\.(\S+) import", snippet)[1]


class Pipeline:
    """Stands for the caller's pipeline: tiny, and given its text states, since its tokenizers have no length."""

    def __init__(self, pipeline, text):
        self._pipeline, self._text = pipeline, text
        self._callback_tensor_inputs = pipeline._callback_tensor_inputs
        self.transformer = pipeline.transformer

    def __call__(self, prompt, **asked):
        embeds = dict(prompt_embeds=self._text.prompt_embeds, pooled_prompt_embeds=self._text.pooled_prompt_embeds)
        size = dict(height=128, width=128, num_inference_steps=4, guidance_scale=1.0)
        return self._pipeline(**asked, **embeds, **size)


@pytest.fixture
def names(golden_model, golden_conditioning, cases):
    """What the page's reader has."""
    pipeline = DiffusionPipeline.from_pretrained(PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    return dict(
        asyncio=asyncio,
        model=golden_model,
        score_functions={},
        latents=cases["0.latents"],
        prompt_embeds=golden_conditioning.prompt_embeds,
        pooled_prompt_embeds=golden_conditioning.pooled_prompt_embeds,
        picture=Image.new("RGB", (64, 64), "red"),
        pipeline=Pipeline(pipeline, golden_model.encode_prompts(["a red fox"])),
    )


def test_every_adapter_has_its_lines():
    package = Path(import_module("dina_lrm.adapters").__file__).parent
    told = {name_of(snippet).removeprefix("adapters.") for snippet in SNIPPETS}
    helpers = {"__init__", "pictures", "sampler_levels", "verl_omni_http", "flow_factory"}
    assert {file.stem for file in package.glob("*.py")} - helpers <= told
    assert all(snippet.count("\n") <= 8 for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=name_of)
def test_the_lines_run(snippet, names, monkeypatch):
    load = RewardModel.from_pretrained
    monkeypatch.setattr(RewardModel, "from_pretrained", lambda path: load(PUBLISHED, base=str(PIPELINE)))
    with torch.no_grad():
        exec(compile(snippet, "docs/adapters.md", "exec"), names)
    if "hook" in names:
        assert 1 <= len(names["hook"].records) <= 2
    if "images" in names:
        assert len(names["images"]) == 1
    if "answer" in names:
        assert "score" in names["answer"]
    if "scores" in names:
        assert len(names["scores"]) == 3


@pytest.mark.parametrize("text", SETTINGS, ids=["verl-omni", "flow-factory"])
def test_configurations_name_what_is_there(text):
    settings = yaml.safe_load(text)
    if "reward" in settings:
        named = settings["reward"]["reward_functions"]["dina"]
        function = getattr(import_module(named["path"].removeprefix("pkg://")), named["name"])
        passed_on = set(named) - {"path", "name", "weight", "required"}
        assert "server_url" in passed_on and passed_on <= set(inspect.signature(function).parameters)
    else:
        module, _, name = settings["rewards"][0]["reward_model"].rpartition(".")
        assert callable(getattr(import_module(module), name))
