"""flow_grpo's contract: how its `multi_score` finds, makes and calls a reward, written down from its documentation."""

import numpy as np
import pytest
import torch

from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.flow_grpo import image_score, latent_score
from dina_lrm.errors import ImageError
from tests.adapters.fake import brightness


def weighted_sum(table, weights, images, prompts, metadata, device="cpu"):
    """What the trainer does with its table of factories."""
    made = {
        name: table[name](device) if "device" in table[name].__code__.co_varnames else table[name]() for name in weights
    }
    total, details = [], {}
    for name, weight in weights.items():
        scores, _ = made[name](images, prompts, metadata)
        details[name] = scores
        weighted = [weight * score for score in scores]
        total = [a + b for a, b in zip(total, weighted, strict=True)] if total else weighted
    return {**details, "avg": total}, {}


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_the_trainer_finds_makes_and_calls_it(model, pictures, pixels, form):
    images = pixels if form == "torch" else np.stack([np.asarray(picture) for picture in pictures])
    table = {"dina": image_score(model, Asking(value="utility")), "ones": lambda: lambda i, p, m: ([1.0] * len(p), {})}
    scores, _ = weighted_sum(table, {"dina": 0.5, "ones": 2.0}, images, ("a", "bb", "ccc"), [{}] * 3)
    expected = [0.5 * (brightness(picture) + 1 + place) + 2 for place, picture in enumerate(pictures)]
    assert scores["avg"] == pytest.approx(expected, abs=1e-6)
    assert torch.as_tensor(scores["avg"]).dtype == torch.float32
    assert len(model.calls) == 1 and model.calls[0]["prompts"] == ["a", "bb", "ccc"]


def test_reference_images_of_newer_trainers_are_taken_and_not_read(model, pixels):
    scores, details = image_score(model)("cpu")(pixels, ["a"] * 3, {}, ref_images=[None] * 3)
    assert len(scores) == 3 and all(isinstance(score, float) for score in scores)
    assert details.keys() == {"dina_utility", "dina_utility_std", "dina_standard_error"}
    assert all(len(column) == 3 for column in details.values())


def test_candidates_of_a_group_meet_the_same_noise(model, pixels):
    score = image_score(model)("cpu")
    score(pixels, ["a"] * 3, {}), score(pixels, ["a"] * 3, {})
    assert [call["seed"] for call in model.calls] == [0, 0]


def test_a_picture_that_cannot_be_scored_stops_the_call(model, pixels):
    with pytest.raises(ImageError, match="image 1 is black"):
        image_score(model)("cpu")(torch.cat([pixels[:1], torch.zeros_like(pixels[:1])]), ["a", "b"], {})


def test_the_form_of_the_fork_scores_latents(model):
    latents, embeds, pooled = torch.randn(2, 16, 8, 8), torch.randn(2, 5, 4), torch.randn(2, 3)
    factory = latent_score(model, Asking(value="utility"))
    assert "device" in factory.__code__.co_varnames
    score = factory("cpu")
    scores, details = score(latents, embeds, pooled, u=0.1, metadata={"a": 1})
    assert torch.allclose(scores, latents.flatten(1).mean(1) + embeds.flatten(1).mean(1))
    assert model.calls[0]["sigmas"] == (0.1,) and len(details["dina_utility"]) == 2
    assert torch.equal(model.calls[0]["conditioning"].pooled_prompt_embeds, pooled)
    score(latents, embeds, pooled)
    assert model.calls[1]["sigmas"] == (0.4,)
    latent_score(model, Asking(sigmas=(0.2, 0.5)))("cpu")(latents, embeds, pooled)
    assert model.calls[2]["sigmas"] == (0.2, 0.5)


def test_the_form_of_the_fork_passes_gradients(model):
    latents = torch.randn(2, 16, 8, 8, requires_grad=True)
    scores, _ = latent_score(model)("cpu")(latents, torch.randn(2, 5, 4), torch.randn(2, 3))
    scores.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_the_real_model_scores_as_when_asked_itself(golden_model, golden_conditioning, cases):
    latents = cases["0.latents"]
    scores, _ = latent_score(golden_model)("cpu")(
        latents, golden_conditioning.prompt_embeds, golden_conditioning.pooled_prompt_embeds, u=0.4
    )
    own = golden_model.score(conditioning=golden_conditioning, latents=latents)
    assert torch.equal(scores, own.reward)
    pixels = torch.rand(2, 3, 64, 64).mul(255).round().div(255)
    scores, _ = image_score(golden_model)("cpu")(pixels, ["a cat", "a dog"], {})
    own = golden_model.score(prompts=["a cat", "a dog"], images=pixels)
    assert scores == pytest.approx(own.reward.tolist(), abs=1e-5)
