"""The lines of docs/search.md run, on a tiny pipeline and model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from dina_lrm.types import Conditioning
from tests.golden_fixtures import PIPELINE

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SIZE = dict(height=64, width=64, num_inference_steps=4, guidance_scale=1.0)


class Pipeline:
    """Stands for the caller's pipeline: tiny, and given its text states, since its tokenizers have no length."""

    def __init__(self, pipeline: Any, text: Conditioning) -> None:
        self._pipeline, self._text = pipeline, text
        self.transformer, self._callback_tensor_inputs = pipeline.transformer, pipeline._callback_tensor_inputs

    def __call__(self, prompt: str, **asked: Any) -> Any:
        embeds = dict(prompt_embeds=self._text.prompt_embeds, pooled_prompt_embeds=self._text.pooled_prompt_embeds)
        return self._pipeline(**embeds, **SIZE, **asked)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_the_lines_run(golden_model, capsys) -> None:
    pipeline = DiffusionPipeline.from_pretrained(PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    names: dict[str, Any] = dict(model=golden_model, pipeline=pipeline)
    assert len(SNIPPETS) == 3
    for snippet in SNIPPETS:
        if "callback_on_step_end" in snippet:
            names["pipeline"] = Pipeline(pipeline, golden_model.encode_prompts(["a red fox"]))
        small = snippet.replace("128, 128", "8, 8").replace("sampler_sigmas(28,", "sampler_sigmas(4,")
        with torch.no_grad():
            exec(compile(small, "docs/search.md", "exec"), names)
    assert names["found"].ancestry.shape == (1,) and names["found"].evaluations < 16 * 4
    assert len(names["resampled"].ancestry) == 4 and len(names["searched"].latents) == 1
    assert names["guided"].reward.isfinite().all() and len(names["hook"].ancestry) == 1
