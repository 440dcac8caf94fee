"""verl-omni's contract: one sample a call, by keyword, awaited, many at once; a dictionary with `score` comes back."""

import asyncio
import threading

import pytest
import torch

from dina_lrm.adapters import verl_omni
from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.verl_omni import compute_score, scorer
from dina_lrm.errors import ConfigError, ImageError, ShapeError
from tests.adapters.fake import FakeModel, brightness
from tests.golden_fixtures import PIPELINE, PUBLISHED

UTILITY = Asking(value="utility")


def sample(solution_image, prompt="a", **extra_info):
    """As the trainer calls, with what its reward loop adds."""
    return dict(
        data_source="prompts",
        solution_image=solution_image,
        ground_truth=prompt,
        extra_info=extra_info,
        reward_router_address=None,
        reward_model_tokenizer=None,
    )


def texts():
    return dict(prompt_embeds=torch.randn(5, 4), pooled_prompt_embeds=torch.randn(3))


def ask(score, *samples):
    async def main():
        return await asyncio.gather(*(score(**one) for one in samples), return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.parametrize("where", ["latents_clean", "solution_image", "batched"])
def test_latents_are_found_where_the_rollout_left_them(model, where):
    latents, text = torch.randn(16, 8, 8), texts()
    given = {
        "latents_clean": sample(torch.rand(3, 64, 64), latents_clean=latents, **text),
        "solution_image": sample(latents, **text),
        "batched": sample(latents[None], **{name: value[None] for name, value in text.items()}),
    }[where]
    [answer] = ask(scorer(model, UTILITY), given)
    assert answer["score"] == pytest.approx(float(latents.mean() + text["prompt_embeds"].mean()), abs=1e-6)
    assert answer.keys() == {"score", "dina_reward", "dina_utility", "dina_standard_error"}
    assert torch.equal(model.calls[0]["conditioning"].pooled_prompt_embeds[0], text["pooled_prompt_embeds"])


def test_latents_without_text_states_are_scored_under_the_prompt(model):
    latents = torch.randn(16, 8, 8)
    [answer] = ask(scorer(model, UTILITY), sample(latents, "four"))
    assert answer["score"] == pytest.approx(float(latents.mean()) + 4, abs=1e-6)


def test_pictures_are_scored_as_tensors_and_as_pictures(model, pictures, pixels):
    answers = ask(scorer(model, UTILITY, 0.1, 1.0), sample(pixels[0], "bb"), sample(pictures[0], "bb"))
    expected = (brightness(pictures[0]) + 2) * 0.1 + 1
    assert [answer["score"] for answer in answers] == pytest.approx([expected] * 2)
    assert answers[0]["dina_reward"] == pytest.approx(10 * (brightness(pictures[0]) + 2))


def test_samples_that_wait_together_are_scored_together(model, pixels):
    text = [texts() for _ in range(4)]
    latents = [sample(torch.randn(16, 8, 8), **one) for one in text]
    other = sample(torch.randn(16, 8, 16), **text[0])
    answers = ask(scorer(model), *latents[:2], sample(pixels[0]), other, *latents[2:], sample(pixels[1]))
    assert all(isinstance(answer, dict) for answer in answers)
    assert sorted(len(c["latents"]) for c in model.calls if c["latents"] is not None) == [1, 4]
    assert [len(c["images"]) for c in model.calls if c["images"] is not None] == [2]
    assert {call["seed"] for call in model.calls} == {0}


def test_each_gets_the_answer_to_its_own_sample(model, pixels):
    prompts = ["a" * n for n in range(1, 41)]
    answers = ask(scorer(model, UTILITY), *(sample(pixels[0], prompt) for prompt in prompts))
    base = answers[0]["score"] - 1
    assert [answer["score"] - base for answer in answers] == pytest.approx(
        [len(prompt) for prompt in prompts], abs=1e-5
    )
    assert max(len(call["images"]) for call in model.calls) == 16


def test_a_sample_that_cannot_be_scored_raises_alone(model, pictures, black):
    answers = ask(scorer(model), sample(pictures[0]), sample(black), sample(pictures[1]))
    assert isinstance(answers[1], ImageError) and isinstance(answers[0], dict) and isinstance(answers[2], dict)
    [answer] = ask(scorer(model), sample(None))
    assert isinstance(answer, ShapeError)
    [answer] = ask(scorer(model), sample(torch.randn(2, 16, 8, 8), **texts()))
    assert isinstance(answer, ShapeError) and "one sample" in str(answer)


def test_a_fault_of_the_scorer_reaches_whoever_waits(pictures):
    class Broken(FakeModel):
        def score(self, **ask):
            raise KeyError("a fault")

    answers = ask(scorer(Broken()), sample(pictures[0]), sample(pictures[1]))
    assert all(isinstance(answer, KeyError) for answer in answers)


def test_the_loop_runs_on_while_a_sample_is_scored(pictures):
    class Slow(FakeModel):
        def score(self, **ask):
            assert going.wait(10)
            return super().score(**ask)

    going = threading.Event()

    async def main():
        task = asyncio.create_task(scorer(Slow())(**sample(pictures[0])))
        await asyncio.sleep(0.01)
        assert not task.done()
        going.set()
        return await task

    assert "score" in asyncio.run(main())


def test_a_sample_that_nobody_waits_for_is_left_out(model, pictures):
    async def main():
        score = scorer(model)
        first = asyncio.create_task(score(**sample(pictures[0])))
        second = asyncio.create_task(score(**sample(pictures[1])))
        await asyncio.sleep(0)
        second.cancel()
        return await first

    assert "score" in asyncio.run(main())
    assert len(model.calls) == 1


def test_one_scorer_serves_one_loop_after_another(model, pictures):
    score = scorer(model)
    assert ask(score, sample(pictures[0])) == ask(score, sample(pictures[0]))


def test_a_configuration_names_the_model(golden_conditioning, golden_model, cases, monkeypatch):
    monkeypatch.setattr(verl_omni, "_loaded", verl_omni._loaded.__wrapped__)
    given = sample(
        cases["0.latents"][0],
        prompt_embeds=golden_conditioning.prompt_embeds[0],
        pooled_prompt_embeds=golden_conditioning.pooled_prompt_embeds[0],
    )
    settings = dict(
        model_path=str(PUBLISHED), base_path=str(PIPELINE), noise_level=0.4, score_scale=0.1, score_bias=1.0
    )
    answers = ask(compute_score, {**given, **settings}, {**given, **settings})
    own = golden_model.score(conditioning=golden_conditioning[:1], latents=cases["0.latents"][:1])
    assert [answer["score"] for answer in answers] == pytest.approx([float(own.reward[0]) * 0.1 + 1] * 2, abs=1e-5)
    [missing] = ask(compute_score, given)
    assert isinstance(missing, ConfigError) and "model_path" in str(missing)
    [wrong] = ask(compute_score, {**given, **settings, "dtype": "float"} | {"dtype": "int"} | {"dtype": "half8"})
    assert isinstance(wrong, ConfigError) and "half8" in str(wrong)
