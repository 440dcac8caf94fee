"""verl-omni's contract: one sample a call, by keyword, awaited, many at once; a dictionary with `score` comes back."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch

from dina_lrm.adapters import verl_omni
from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.verl_omni import compute_score, scorer
from dina_lrm.errors import ConfigError, ImageError, InputError, NoAnswerError, ShapeError, WorkError
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
        model_name="judge",
        sampling_params={"max_tokens": 4096},
    )


def texts():
    return dict(prompt_embeds=torch.randn(5, 4), pooled_prompt_embeds=torch.randn(3))


def artifacts(latents, layout="CHW"):
    """Media by name, as newer versions of the trainer hand them over."""
    spec = SimpleNamespace(modality="image", representation="latent", layout=layout)
    return {"image_latent": SimpleNamespace(spec=spec, data=latents, context="rollout")}


def ask(score, *samples):
    async def main():
        return await asyncio.gather(*(score(**one) for one in samples), return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.parametrize("where", ["latents_clean", "media_artifacts", "solution_image", "batched"])
def test_latents_are_found_where_the_rollout_left_them(model, where):
    latents, text = torch.randn(16, 8, 8), texts()
    given = {
        "latents_clean": sample(torch.rand(3, 64, 64), latents_clean=latents, **text),
        "media_artifacts": sample(torch.rand(3, 64, 64), media_artifacts=artifacts(latents), **text),
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
    monkeypatch.setattr(verl_omni, "_scorers", {})
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


def test_latents_of_another_layout_are_refused(model):
    given = sample(None, media_artifacts=artifacts(torch.randn(8, 8, 16), "HWC"), **texts())
    [answer] = ask(scorer(model), given)
    assert isinstance(answer, ShapeError) and "got 'HWC'" in str(answer)


def test_two_event_loops_share_a_scorer_and_lose_nothing(pictures):
    """The first loop's worker is busy, with a sample of another size still waiting, while the second asks."""

    class Slow(FakeModel):
        def score(self, **ask):
            started.set()
            assert going.wait(10)
            return super().score(**ask)

    started, going, asked = threading.Event(), threading.Event(), threading.Event()
    score, answers = scorer(Slow(), UTILITY), {}

    async def main(prompts):
        samples = [sample(pictures[0], prompt) for prompt in prompts]
        samples.append(sample(torch.zeros(16, 8, 8), prompts[0]))
        tasks = [asyncio.create_task(score(**one)) for one in samples]
        for _ in range(3):
            await asyncio.sleep(0)  # the worker has taken its first batch by now
        if "ccc" in prompts:
            asked.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), 5)

    def loop(name, prompts):
        answers[name] = asyncio.run(main(prompts))

    threads = [threading.Thread(target=loop, args=("first", ["a", "bb"]))]
    threads[0].start()
    assert started.wait(10)
    threads.append(threading.Thread(target=loop, args=("second", ["ccc", "dddd"])))
    threads[1].start()
    assert asked.wait(10)
    going.set()
    for thread in threads:
        thread.join(20)
    own = brightness(pictures[0])
    assert {name: [one["score"] for one in found] for name, found in answers.items()} == {
        "first": pytest.approx([own + 1, own + 2, 1]),
        "second": pytest.approx([own + 3, own + 4, 3]),
    }


def test_without_a_seed_each_sample_has_one_of_its_own(model, pictures):
    answers = ask(scorer(model, Asking(seed=None)), *(sample(picture) for picture in pictures))
    assert all("score" in answer for answer in answers)
    [call] = model.calls
    assert len(set(call["seed"])) == 3 and all(0 <= seed < 2**53 for seed in call["seed"])


def test_the_recipes_settings_score_in_the_process_too(golden_conditioning, golden_model, cases, monkeypatch):
    """noise_seed: null draws; `value: utility` is what a server of the protocol gives."""
    monkeypatch.setattr(verl_omni, "_scorers", {})
    monkeypatch.setattr(verl_omni, "_model", lambda *settings: golden_model)
    given = sample(
        cases["0.latents"][0],
        prompt_embeds=golden_conditioning.prompt_embeds[0],
        pooled_prompt_embeds=golden_conditioning.pooled_prompt_embeds[0],
    )
    drawn, fixed = ask(
        compute_score,
        {**given, "model_path": "m", "noise_seed": None},
        {**given, "model_path": "m", "value": "utility"},
    )
    own = golden_model.score(conditioning=golden_conditioning[:1], latents=cases["0.latents"][:1])
    assert fixed["score"] == pytest.approx(float(own.utility[0]), abs=1e-5) and "score" in drawn


def test_a_server_without_an_answer_is_asked_once(pictures):
    class Gone(FakeModel):
        def score(self, **ask):
            self.calls.append(ask)
            raise NoAnswerError("no answer in 120 s")

    gone = Gone()
    answers = ask(scorer(gone), *(sample(picture) for picture in pictures))
    assert all(isinstance(answer, NoAnswerError) for answer in answers) and len(gone.calls) == 1


def test_what_fails_together_is_asked_for_by_itself_until_there_is_no_answer(pictures):
    class Failing(FakeModel):
        def score(self, **ask):
            self.calls.append(ask)
            raise WorkError("not finite") if len(self.calls) == 1 else NoAnswerError("no answer in 120 s")

    failing = Failing()
    answers = ask(scorer(failing), *(sample(picture) for picture in pictures))
    assert all(isinstance(answer, NoAnswerError) for answer in answers) and len(failing.calls) == 2


def test_settings_that_nobody_reads_are_refused(model, pictures):
    for score in (scorer(model), compute_score):
        [answer] = ask(score, {**sample(pictures[0]), "noise_levle": 0.2})
        assert isinstance(answer, ConfigError) and "noise_levle" in str(answer)


@pytest.mark.parametrize("prompt", [None, "", " ", {"prompt": "a"}])
def test_without_a_prompt_or_text_states_there_is_no_score(model, pictures, prompt):
    latents = torch.randn(16, 8, 8)
    picture, bare, whole = ask(
        scorer(model), sample(pictures[0], prompt), sample(latents, prompt), sample(latents, prompt, **texts())
    )
    for answer in (picture, bare):
        assert isinstance(answer, InputError) and "ground_truth must be the prompt" in str(answer)
    assert "score" in whole


def test_the_model_is_loaded_once_and_beside_the_loops(model, pictures, monkeypatch):
    """Two loops that ask at the same time; the first goes on while the model is being loaded."""
    monkeypatch.setattr(verl_omni, "_scorers", {})
    loads, ticked = [], threading.Event()

    def load(*settings):
        loads.append(threading.current_thread())
        assert ticked.wait(10)  # set by the loop, which therefore runs
        return model

    monkeypatch.setattr(verl_omni, "_model", load)

    async def main():
        asked = [asyncio.create_task(compute_score(**sample(picture), model_path="m")) for picture in pictures]
        await asyncio.sleep(0)
        ticked.set()
        return await asyncio.gather(*asked)

    answers = []
    threads = [threading.Thread(target=lambda: answers.extend(asyncio.run(main()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 6 and len(loads) == 1 and loads[0] not in threads
