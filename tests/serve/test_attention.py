"""Where the head looks, over HTTP: as the local model says, and refusals with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dina_lrm.backbones import BackboneConfig, load_backbone
from dina_lrm.checkpoint import LoadedModel
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.model import build_network
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring import RewardModel
from dina_lrm.serve.attention import attention_maps
from dina_lrm.serve.settings import ServeSettings
from tests.golden_fixtures import PIPELINE
from tests.serve.fake import in_loop
from tests.serve.serving import base64_of, error_of, file_of, random_picture, serving

PROMPT = "a girl walking in the street"


def words(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "images": [base64_of(random_picture(0, 96, 64))], "sigma": 0.3, "seed": 4, **changes}


def local(model: RewardModel, sigma: float = 0.3, seed: int = 4) -> torch.Tensor:
    with torch.no_grad():
        candidates = model.candidates(prompts=[PROMPT], images=[random_picture(0, 96, 64)], seed=seed)
    return attention_maps(model, candidates, sigma)


@in_loop
async def test_maps_are_those_of_the_local_model(golden_model) -> None:
    async with serving(golden_model) as client:
        response = await client.post("/v1/attention", json=words())
    assert response.status_code == 200, response.text
    reply, wanted = response.json(), local(golden_model)
    maps = torch.tensor(reply["queries"])
    assert maps.shape == wanted.shape and torch.allclose(maps, wanted, atol=1e-6)
    assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(len(maps)), atol=1e-5)
    assert torch.allclose(torch.tensor(reply["mean"]), maps.mean(dim=0), atol=1e-6)
    assert (reply["model"], reply["sigma"], reply["seed"]) == ("tiny", 0.3, 4)
    assert maps.shape[1] * 3 == maps.shape[2] * 2  # rows and columns as the picture has them


@in_loop
async def test_a_form_says_the_same(golden_model) -> None:
    async with serving(golden_model) as client:
        by_json = await client.post("/v1/attention", json=words())
        request = json.dumps({"prompt": PROMPT, "sigma": 0.3, "seed": 4}).encode()
        parts = [("request", (None, request)), ("images", ("a.png", file_of(random_picture(0, 96, 64)), "image/png"))]
        by_form = await client.post("/v1/attention", files=parts)
    assert by_form.status_code == 200, by_form.text
    assert by_form.json() == by_json.json()


def test_the_state_is_that_of_a_scores_first_draw(golden_model) -> None:
    with torch.no_grad():
        candidates = golden_model.candidates(prompts=[PROMPT], images=[random_picture(0, 96, 64)], seed=4)
        first = next(golden_model.asker.score(candidates, NoiseEnsemble((0.3,), 5))).state[:1]
        wanted = golden_model.network.attention(first, candidates.conditioning)[0]
    assert torch.allclose(local(golden_model), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"images": []}, 422),
        ({"images": [base64_of(random_picture(0)), base64_of(random_picture(1))]}, 422),
        ({"images": ["no base64!"]}, 422),
        ({"images": ["QUJD"]}, 422),
        ({"sigma": 1.5}, 422),
        ({"seed": -1}, 422),
        ({"prompt": None}, 422),
        ({"prompt": "long " * 100}, 422),
        ({"depth": 3}, 422),
        ({"model": "another"}, 404),
    ],
)
@in_loop
async def test_what_cannot_be_mapped_is_refused(golden_model, changes, status) -> None:
    async with serving(golden_model, ServeSettings(max_prompt_chars=100)) as client:
        assert error_of(await client.post("/v1/attention", json=words(**changes)))[0] == status
        assert (await client.post("/v1/attention", json=words())).status_code == 200


@in_loop
async def test_another_content_type_is_refused(golden_model) -> None:
    async with serving(golden_model) as client:
        response = await client.post("/v1/attention", content=b"words", headers={"content-type": "text/plain"})
        assert error_of(response)[0] == 415


@in_loop
async def test_a_head_without_attention_says_so(golden_model) -> None:
    backbone = load_backbone(BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None), str(PIPELINE))
    head = MeanPoolHeadConfig(width=8)
    config = golden_model.config.model_copy(update={"backbone": backbone.config, "head": head})
    model = RewardModel(LoadedModel(build_network(backbone, head).eval(), config))
    async with serving(model) as client:
        response = await client.post("/v1/attention", json=words())
        assert error_of(response)[0] == 422 and "attends to nothing" in response.text
