"""Adapters on a real server: a client in the model's place, and the servers' own routes for trainers."""

import asyncio
import base64
import io
import json

import httpx2
import pytest
import torch

from dina_lrm.adapters import verl_omni_http
from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.diffusers_callback import StepScores
from dina_lrm.adapters.flow_grpo import image_score, latent_score
from dina_lrm.adapters.trl import ddpo_reward, grpo_reward
from dina_lrm.adapters.unirl import RewardRequest, UnirlClient, UnirlRewards
from dina_lrm.errors import InputError
from dina_lrm.scoring.client import RewardClient
from dina_lrm.types import NoisedState
from tests.conformance.served import KEY, NAME, served

CLOSE = dict(abs=1e-5)


@pytest.fixture(scope="module")
def server(golden_model):
    with served(golden_model) as url:
        yield url


@pytest.fixture
def client(server):
    with RewardClient(server, api_key=KEY) as client:
        yield client


def test_an_adapter_cannot_tell_a_client_from_the_model(
    client, golden_model, golden_conditioning, cases, pixels, pictures
):
    prompts = ["a cat", "a dog", "a fish"]
    text = (golden_conditioning.prompt_embeds, golden_conditioning.pooled_prompt_embeds)
    asking = Asking(sigmas=(0.2, 0.5), draws=2, fusion="tokens", seed=3)
    for one in (
        lambda model: image_score(model, asking)("cpu")(pixels, prompts, {})[0],
        lambda model: latent_score(model, asking)("cpu")(cases["0.latents"], *text)[0].tolist(),
        lambda model: grpo_reward(model, asking)(prompts=prompts, completions=pictures),
        lambda model: ddpo_reward(model, asking)(pixels, prompts, ())[0].tolist(),
    ):
        assert one(client) == pytest.approx(one(golden_model), **CLOSE)


def test_a_gradient_over_http_is_refused(client, golden_conditioning, cases):
    latents = cases["0.latents"].clone().requires_grad_()
    score = latent_score(client)("cpu")
    with pytest.raises(InputError, match="none comes back over HTTP"):
        score(latents, golden_conditioning.prompt_embeds, golden_conditioning.pooled_prompt_embeds)


def test_a_sampler_may_ask_a_server(client, golden_model, golden_conditioning, cases):
    state = NoisedState(cases["0.latents"], torch.full((3,), 0.5))
    hook = StepScores(client, conditioning=golden_conditioning)
    own = golden_model.score_state(state, golden_conditioning)
    found = hook.model.score_state(state, golden_conditioning)
    assert found.reward.tolist() == pytest.approx(own.reward.tolist(), **CLOSE)


def test_protocol_version_1_gives_the_models_utility(server, golden_model, golden_conditioning, cases):
    async def main():
        asked = [
            verl_omni_http.compute_score(
                solution_image=cases["0.latents"][place],
                ground_truth="",
                extra_info=dict(
                    prompt_embeds=golden_conditioning.prompt_embeds[place],
                    pooled_prompt_embeds=golden_conditioning.pooled_prompt_embeds[place],
                ),
                server_url=f"{server}/v1/score",
                noise_seed=place,
                api_key=KEY,
            )
            for place in range(3)
        ]
        try:
            return await asyncio.gather(*asked)
        finally:
            await verl_omni_http.close()

    answers = asyncio.run(main())
    own = golden_model.score(conditioning=golden_conditioning, latents=cases["0.latents"], seed=[0, 1, 2])
    assert [answer["drm_raw_score"] for answer in answers] == pytest.approx(own.utility.tolist(), **CLOSE)


def test_the_route_of_unirl_answers_as_the_model_in_its_place(server, golden_model, pictures):
    asked = [RewardRequest([("a cat", picture)], [NAME]) for picture in pictures]
    there = UnirlClient(server, api_key=KEY)
    here = UnirlRewards(golden_model, NAME)
    found = there.score(asked)
    assert [one[NAME][NAME] for one in found] == pytest.approx([one[NAME][NAME] for one in here.score(asked)], **CLOSE)
    answer = there.answer([asked[0], RewardRequest([("a", pictures[0])], [NAME, "clip"])])
    assert set(answer.results[1]) == {NAME} and set(answer.errors[1]) == {"clip"} and not answer.errors[0]
    there.close()


def test_the_route_of_flow_factory_answers_as_its_reward_class(server, golden_model, pictures):
    """By the trainer's own remote client, from configuration alone."""

    def encoded(picture):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    body = {"prompt": ["a cat"] * 3, "image": [encoded(one) for one in pictures], "video": None, "kwargs": None}
    response = httpx2.post(f"{server}/compute", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    own = golden_model.score(prompts=["a cat"], images=pictures)
    assert json.loads(response.content)["rewards"] == pytest.approx(own.reward.tolist(), **CLOSE)
    assert httpx2.get(f"{server}/health").json()["status"] == "ok"
