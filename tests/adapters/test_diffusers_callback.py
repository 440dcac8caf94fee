"""The hook inside samplers of diffusers' own, unmodified pipelines.

What is scored after a step must be what the sampler's network is given at the next one: hooks on the networks say what that is.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UniPCMultistepScheduler,
)

from dina_lrm.adapters.diffusers_callback import StepScores
from dina_lrm.adapters.sampler_levels import state_after
from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.scoring import RewardModel
from dina_lrm.types import Conditioning, NoisedState
from tests.adapters.fake import FakeModel
from tests.golden_fixtures import PUBLISHED
from tests.pipelines import build_pipeline

# The library's schedules of sigmas hand torch tensors to numpy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 4
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SIZE = dict(height=64, width=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def build(kind):
        if kind not in made:
            made[kind] = build_pipeline(kind, tmp_path_factory.mktemp("pipelines") / kind)
        return made[kind]

    return build


@pytest.fixture
def load(folder):
    def loaded(kind, cls=DiffusionPipeline):
        pipeline = cls.from_pretrained(folder(kind))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return loaded


def seen_by(network, pipeline) -> list[tuple[torch.Tensor, float]]:
    """What the network is given at each call: its input and timestep."""
    given: list[tuple[torch.Tensor, float]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        given.append((hidden.detach().clone(), float(torch.as_tensor(timestep).flatten()[0])))

    network.register_forward_pre_hook(note, with_kwargs=True)
    return given


def run(pipeline, hook, prompt="a red fox", **settings):
    """Latents that a few steps end with."""
    asked = {**SIZE, "num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 1.0, **settings}
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, generator=generator, callback_on_step_end=hook, **asked).images


def conditioning(batch=1):
    return Conditioning(torch.randn(batch, 5, 4), torch.randn(batch, 3))


def trained_sigma(scheduler, timestep):
    return float((1 - scheduler.alphas_cumprod[round(timestep)]).sqrt())


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler]
)
def test_sd3_is_scored_as_its_network_reads_it(load, scheduler):
    pipeline, model = load("sd35"), FakeModel()
    settings = dict(shift=3.0)
    if scheduler is UniPCMultistepScheduler:
        settings = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipeline.scheduler = scheduler(**settings)
    given = seen_by(pipeline.transformer, pipeline)
    hook = StepScores(model, conditioning=conditioning())
    final = run(pipeline, hook)
    states = [call["state"] for call in model.calls]
    assert len(states) == len(given) == len(hook.records)
    for state, (hidden, timestep) in zip(states, given[1:], strict=False):
        assert torch.allclose(state.noised_latents, hidden, atol=1e-6)
        assert float(state.sigma[0]) == pytest.approx(
            timestep / 1000, abs=1e-3 if scheduler is UniPCMultistepScheduler else 1e-6
        )
    assert torch.allclose(states[-1].noised_latents, final) and float(states[-1].sigma[0]) == 0
    assert [record.sigma for record in hook.records] == [float(state.sigma[0]) for state in states]


EXPLODING = (
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
)
PRESERVING = (
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    LCMScheduler,
    DPMSolverMultistepScheduler,
    DEISMultistepScheduler,
    UniPCMultistepScheduler,
)


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
@pytest.mark.parametrize("scheduler", [*EXPLODING, *PRESERVING])
def test_unets_are_scored_as_their_network_reads_them(load, kind, scheduler):
    pipeline, model = load(kind), FakeModel()
    pipeline.scheduler = scheduler(**BETAS)
    given = seen_by(pipeline.unet, pipeline)
    final = run(pipeline, StepScores(model, conditioning=conditioning()), height=64, width=64)
    states = [call["state"] for call in model.calls]
    assert len(states) == len(given)
    for state, (hidden, timestep) in zip(states, given[1:], strict=False):
        assert torch.allclose(state.noised_latents, hidden, atol=1e-5)
        # A schedule of sigmas is told to the network as the nearest timestep, in some as a whole one.
        assert float(state.sigma[0]) == pytest.approx(trained_sigma(pipeline.scheduler, timestep), abs=3e-3)
    assert torch.allclose(states[-1].noised_latents, final, atol=1e-6)
    assert float(states[-1].sigma[0]) <= trained_sigma(pipeline.scheduler, 0) + 1e-6


def test_the_state_is_the_clean_latents_noised_to_its_sigma(load):
    """Of a perfect network: one that knows the noise, under a scheduler of either kind."""
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for kind, settings in (
        (EulerDiscreteScheduler, {}),
        (DDIMScheduler, {"clip_sample": False}),
        (DPMSolverMultistepScheduler, {}),
    ):
        scheduler = kind(**BETAS, **settings)
        scheduler.set_timesteps(STEPS)
        latents = scheduler.add_noise(clean, noise, scheduler.timesteps[:1].repeat(2))
        for step, timestep in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(latents, timestep)
            latents = scheduler.step(noise, timestep, latents).prev_sample
            state = state_after(scheduler, step, STEPS, timestep, latents)
            sigma = state.sigma[0]
            expected = (1 - sigma**2).sqrt() * clean + sigma * noise
            assert torch.allclose(state.noised_latents, expected, atol=2e-4), (kind.__name__, step)


@pytest.mark.parametrize(
    ("kind", "guidance"), [("flux", {"guidance_scale": 3.5}), ("qwen_image", {"guidance_scale": None})]
)
def test_packed_latents_are_unpacked(load, kind, guidance):
    pipeline, model = load(kind), FakeModel()
    given = seen_by(pipeline.transformer, pipeline)
    run(pipeline, StepScores(model, conditioning=conditioning(), **SIZE), **guidance)
    assert len(model.calls) == len(given) == STEPS
    for call, (hidden, timestep) in zip(model.calls, given[1:], strict=False):
        state = call["state"]
        assert state.noised_latents.shape == (1, 16, 8, 12)
        packed = pipeline._pack_latents(state.noised_latents, *state.noised_latents.shape)
        assert torch.equal(packed, hidden)
        assert float(state.sigma[0]) == pytest.approx(timestep, abs=1e-6)


def test_clips_of_wan_are_scored_with_their_own_text(load):
    pipeline, model = load("wan"), FakeModel()
    given = seen_by(pipeline.transformer, pipeline)
    hook = StepScores(model)
    pipeline(
        "a red fox",
        num_frames=5,
        num_inference_steps=STEPS,
        output_type="latent",
        guidance_scale=5.0,
        callback_on_step_end=hook,
        callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline),
        **SIZE,
    )
    text, _ = pipeline.encode_prompt(
        "a red fox", do_classifier_free_guidance=False, device="cpu", max_sequence_length=512
    )
    # The network reads each state twice, with the prompt and with the negative one.
    for call, (hidden, timestep) in zip(model.calls, given[2::2], strict=False):
        assert torch.allclose(call["state"].noised_latents, hidden) and call["state"].noised_latents.ndim == 5
        assert float(call["state"].sigma[0]) == pytest.approx(timestep / 1000, abs=1e-3)
        assert torch.allclose(call["conditioning"].prompt_embeds, text, atol=1e-4)


@pytest.mark.parametrize("kind", ["flux", "zimage", "qwen_image"])
def test_where_the_sampler_keeps_text_back_conditioning_is_asked_for(load, kind):
    pipeline = load(kind)
    hook = StepScores(FakeModel(), **SIZE)
    with pytest.raises(ConfigError, match="no pooled text state and no mask: give conditioning"):
        run(pipeline, hook, callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline))


def test_packed_latents_need_their_shape(load):
    pipeline = load("flux")
    with pytest.raises(ConfigError, match="FluxPipeline packs its latents.*give height and width"):
        run(pipeline, StepScores(FakeModel(), conditioning=conditioning()))
    with pytest.raises(ShapeError, match="pictures of 64 x 64 have 4 x 4 tokens, the sampler has 24"):
        run(pipeline, StepScores(FakeModel(), conditioning=conditioning(), height=64, width=64))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["sd35", "sdxl", "sd15"])
def test_the_samplers_own_text_is_read_without_the_negative_prompt(load, kind, guidance):
    pipeline, model = load(kind), FakeModel()
    hook = StepScores(model, steps=[1])
    run(
        pipeline,
        hook,
        ["a red fox", "two owls"],
        height=64,
        width=64,
        guidance_scale=guidance,
        num_images_per_prompt=2,
        callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline),
    )
    text = model.calls[0]["conditioning"]
    with torch.no_grad():
        encoded = pipeline.encode_prompt(["a red fox", "two owls"], **encoding(kind))
    assert torch.allclose(text.prompt_embeds, encoded[0].repeat_interleave(2, dim=0), atol=1e-5)
    if kind == "sd15":
        assert text.pooled_prompt_embeds is None
    else:
        assert torch.allclose(text.pooled_prompt_embeds, encoded[2].repeat_interleave(2, dim=0), atol=1e-5)


def encoding(kind):
    if kind == "sd35":
        return dict(prompt_2=None, prompt_3=None, do_classifier_free_guidance=False)
    return dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)


def test_without_conditioning_the_pipeline_must_hand_the_text_over(load):
    with pytest.raises(ConfigError, match=r"callback_on_step_end_tensor_inputs=hook.tensor_inputs\(pipeline\)"):
        run(load("sd35"), StepScores(FakeModel()))


def test_one_prompt_serves_all_samples_and_many_are_shared_evenly(load):
    pipeline, model, text = load("sd35"), FakeModel(), conditioning(2)
    run(pipeline, StepScores(model, conditioning=conditioning(), steps=[0]), num_images_per_prompt=3)
    assert len(model.calls[0]["conditioning"]) == 3
    run(pipeline, StepScores(model, conditioning=text, steps=[0]), ["a", "b"], num_images_per_prompt=2)
    assert torch.equal(model.calls[1]["conditioning"].prompt_embeds, text.prompt_embeds[[0, 0, 1, 1]])
    with pytest.raises(ShapeError, match="3 samples of the sampler cannot share 2 prompts evenly"):
        run(pipeline, StepScores(model, conditioning=text, steps=[0]), num_images_per_prompt=3)


def test_steps_and_levels_are_chosen(load):
    pipeline = load("sd35")
    every = StepScores(FakeModel(), conditioning=conditioning())
    run(pipeline, every)
    levels = [record.sigma for record in every.records]
    assert [record.step for record in every.records] == [0, 1, 2, 3] and levels == sorted(levels, reverse=True)
    some = StepScores(FakeModel(), conditioning=conditioning(), steps={0, 3})
    run(pipeline, some)
    assert [record.step for record in some.records] == [0, 3]
    middle = (levels[0] + levels[1]) / 2
    at = StepScores(FakeModel(), conditioning=conditioning(), sigmas=(0.0, middle, 1.0))
    run(pipeline, at)
    assert [record.step for record in at.records] == [0, 1, 3]
    run(pipeline, at)
    assert [record.step for record in at.records] == [0, 1, 3, 0, 1, 3]
    both = StepScores(FakeModel(), conditioning=conditioning(), sigmas=(middle,), steps=[2])
    run(pipeline, both)
    assert [record.step for record in both.records] == [1, 2]
    with pytest.raises(ValueRangeError, match="sigmas must be levels"):
        StepScores(FakeModel(), sigmas=(2.0,))


def test_the_sampler_draws_what_it_draws_without_the_hook(load):
    for kind in ("sd35", "sdxl"):
        pipeline = load(kind)
        plain = run(pipeline, None, height=64, width=64)
        hooked = run(pipeline, StepScores(FakeModel(), conditioning=conditioning()), height=64, width=64)
        assert torch.equal(plain, hooked)


def test_the_callers_function_may_stop_the_sampler(load):
    def stop(pipeline, found):
        told.append(found)
        pipeline._interrupt = found.step == 1

    told: list = []
    hook = StepScores(FakeModel(), conditioning=conditioning(), on_score=stop)
    run(load("sd35"), hook)
    assert told == hook.records and [found.step for found in told] == [0, 1]


@pytest.mark.parametrize(
    ("kind", "cls", "scheduler"),
    [
        ("sd35", StableDiffusion3Img2ImgPipeline, None),
        ("sdxl", StableDiffusionXLImg2ImgPipeline, DDIMScheduler),
        ("sdxl", StableDiffusionXLImg2ImgPipeline, EulerDiscreteScheduler),
    ],
)
def test_a_run_that_begins_from_a_picture_knows_where_it_is(load, kind, cls, scheduler):
    pipeline, model = load(kind, cls), FakeModel()
    if scheduler is not None:
        pipeline.scheduler = scheduler(**BETAS)
    given = seen_by(pipeline.transformer if kind == "sd35" else pipeline.unet, pipeline)
    asked = dict(image=torch.rand(1, 3, 64, 64), strength=0.5, num_inference_steps=8, guidance_scale=1.0)
    pipeline(
        "a red fox", callback_on_step_end=StepScores(model, conditioning=conditioning()), output_type="latent", **asked
    )
    assert len(model.calls) == 4
    for call, (hidden, timestep) in zip(model.calls, given[1:], strict=False):
        sigma = timestep / 1000 if kind == "sd35" else trained_sigma(pipeline.scheduler, timestep)
        assert torch.allclose(call["state"].noised_latents, hidden, atol=1e-5)
        assert float(call["state"].sigma[0]) == pytest.approx(sigma, abs=3e-3)


def test_a_schedule_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="noise levels of SimpleNamespace are not known"):
        state_after(SimpleNamespace(config={}), 0, 1, 0, torch.zeros(1, 4, 8, 8))
    stranger = SimpleNamespace(config={}, sigmas=[80.0, 1.0, 0.0], step_index=1)
    with pytest.raises(ConfigError, match="not known here"):
        state_after(stranger, 0, 2, 0, torch.zeros(1, 4, 8, 8))
    lost = DDIMScheduler(**BETAS)
    lost.set_timesteps(4)
    with pytest.raises(ConfigError, match="timestep 3 of step 9 is not in the schedule"):
        state_after(lost, 9, 4, 3, torch.zeros(1, 4, 8, 8))


def test_the_real_model_scores_its_own_samplers_states(golden_model):
    pipeline = DiffusionPipeline.from_pretrained(str(golden_model.network.backbone.base))
    pipeline.set_progress_bar_config(disable=True)
    shared = RewardModel.from_pretrained(PUBLISHED, base=pipeline)
    hook = StepScores(shared, conditioning=shared.encode_prompts(["a red fox"]))
    text = hook.conditioning
    embeds = dict(prompt_embeds=text.prompt_embeds, pooled_prompt_embeds=text.pooled_prompt_embeds)
    final = run(pipeline, hook, None, height=128, width=128, **embeds)
    assert len(hook.records) == STEPS and all(torch.isfinite(record.reward.reward).all() for record in hook.records)
    again = golden_model.score_state(NoisedState(final, torch.zeros(1)), golden_model.encode_prompts(["a red fox"]))
    assert torch.allclose(hook.records[-1].reward.utility, again.utility, atol=1e-5)
