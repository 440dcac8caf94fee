"""Search inside samplers of diffusers' own, unmodified pipelines: what the functions on a velocity field find, they find."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from dina_lrm.adapters.diffusers_search import GuideByReward, Prune, Resample, remember
from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.generation import FlowNoise, Guided, Policy, RewardGuidance, Transition, prune, rollout, smc
from dina_lrm.scoring.selection import Cut, judge_of
from dina_lrm.types import Conditioning
from tests.adapters.fake import FakeModel
from tests.pipelines import build_pipeline

# The library's schedules of sigmas hand torch tensors to numpy in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS, SIDE, EACH = 4, 64, 4
WORDS = ["a fox", "two owls"]  # of two lengths: some pipelines mask
SIZE = dict(height=SIDE, width=SIDE)


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
    def loaded(kind):
        pipeline = DiffusionPipeline.from_pretrained(folder(kind))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return loaded


class Picky(FakeModel):
    """Scores by numbers that depend on the prompt in both signs, so that prompts keep others of the same noise."""

    def score_state(self, state, conditioning):
        words = conditioning.prompt_embeds.flatten(1).mean(dim=1)
        return self.reward(state.noised_latents.flatten(1).mean(dim=1) * words, state.sigma[:1].tolist(), None)

    def score(self, *, latents, conditioning, **asked):
        self.calls.append(asked)
        words = conditioning.prompt_embeds.flatten(1).mean(dim=1)
        return self.reward(latents.flatten(1).mean(dim=1) * words, asked["sigmas"], asked["seed"])


TEXT = Conditioning(torch.tensor([1.0, -1.0]).view(2, 1, 1), None)


def looking(model=None, text=TEXT, **asked: Any):
    return judge_of(Picky() if model is None else model, text, **asked)


def noise(count: int = 2 * EACH, channels: int = 16) -> torch.Tensor:
    return torch.randn(count, channels, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))


def run(pipeline, hook, kind="sd35", begin=None, words=None, inputs=None, **settings: Any) -> torch.Tensor:
    """Latents `[b c h w]` that the pipeline's own loop ends with."""
    begin = noise() if begin is None else begin
    packs = kind.startswith("flux") or kind == "qwen_image"
    asked: dict[str, Any] = dict(num_inference_steps=STEPS, output_type="latent", guidance_scale=1.0, **SIZE)
    if kind not in ("sdxl", "sd15"):
        asked["max_sequence_length"] = 16
    found = pipeline(
        list(WORDS if words is None else words),
        num_images_per_prompt=EACH,
        latents=pipeline._pack_latents(begin, *begin.shape) if packs else begin,
        callback_on_step_end=hook,
        callback_on_step_end_tensor_inputs=inputs or (["latents"] if hook is None else hook.tensor_inputs(pipeline)),
        **{**asked, **settings},
    ).images
    if packs:
        found = pipeline._unpack_latents(found, SIDE, SIDE, pipeline.vae_scale_factor)
    return found.reshape(-1, *begin.shape[1:])


@dataclass(frozen=True)
class Reference:
    """The same pipeline's network as a field."""

    policy: Policy
    text: Conditioning
    grid: torch.Tensor

    @staticmethod
    def of(pipeline) -> Reference:
        policy = Policy(pipeline)
        grid = policy.backbone.sampler_sigmas(STEPS, (16, SIDE // 8, SIDE // 8))
        return Reference(policy, policy.backbone.encode_prompts(WORDS, 16), grid)

    def field(self, guidance: float = 1.0) -> Guided:
        return Guided(self.policy, self.policy.backbone.encode_prompts([""], 16), guidance)


def sizes_seen(network) -> list[tuple[int, int]]:
    """How many states and prompts the network is given at each call."""
    seen: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        text = kwargs.get("encoder_hidden_states")
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        seen.append((len(hidden), len(hidden) if text is None else len(text)))

    network.register_forward_hook(note, with_kwargs=True)
    return seen


def cuts_of(grid: torch.Tensor) -> list[Cut]:
    return [Cut(float(grid[1]), 3), Cut(float(grid[3]) + 0.01, 2), Cut(0.0, 1)]


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_pruning_is_that_of_the_function(load, guidance) -> None:
    pipeline = load("sd35")
    ours = Reference.of(pipeline)
    hook = Prune(looking(), cuts_of(ours.grid), num_prompts=2)
    seen = sizes_seen(pipeline.transformer)
    latents = run(pipeline, hook, guidance_scale=guidance)
    found = prune(ours.field(guidance), noise(), ours.text, ours.grid, looking(), cuts_of(ours.grid))
    assert torch.allclose(latents, found.latents, atol=1e-4) and len(latents) == 2
    assert hook.ancestry.tolist() == found.ancestry.tolist()
    assert torch.allclose(hook.reward, found.reward, atol=1e-4)
    assert (hook.evaluations, hook.reward_evaluations) == (found.evaluations, found.reward_evaluations) == (24, 18)
    assert [s.kept.tolist() for s in hook.selections] == [s.kept.tolist() for s in found.selections]
    assert [s.sigma for s in hook.selections] == pytest.approx([s.sigma for s in found.selections])
    passes = 1 if guidance == 1 else 2
    assert seen == [(passes * size, passes * size) for size in (8, 6, 6, 4)]
    assert torch.equal(run(pipeline, hook, guidance_scale=guidance), latents)  # and again


def test_the_predicted_clean_latents_may_be_read_instead(load) -> None:
    pipeline = load("sd35")
    ours = Reference.of(pipeline)
    cuts = [Cut(float(ours.grid[2]), 3), Cut(float(ours.grid[3]), 2), Cut(0.0, 1)]
    hook = Prune(looking(), cuts, num_prompts=2, of="clean")
    latents = run(pipeline, hook)
    found = prune(ours.field(), noise(), ours.text, ours.grid, looking(), cuts, of="clean")
    assert hook.ancestry.tolist() == found.ancestry.tolist() and torch.allclose(latents, found.latents, atol=1e-4)
    for ours_, theirs in zip(found.selections, hook.selections, strict=True):
        assert torch.allclose(ours_.reward, theirs.reward, atol=1e-3) and torch.equal(ours_.kept, theirs.kept)
    with pytest.raises(ConfigError, match="make the first cut later"):
        run(pipeline, Prune(looking(), [Cut(0.99, 2)], num_prompts=2, of="clean"))
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with pytest.raises(ConfigError, match='on its way to needs the plain Euler steps.*give of="state"'):
        run(pipeline, hook)


@pytest.mark.parametrize("kind", ["sd35", "sd15"])
def test_finished_pictures_are_scored_as_they_are_asked_for(load, kind) -> None:
    model, pipeline = Picky(), load(kind)
    if kind == "sd15":  # a schedule that leaves some noise behind
        pipeline.scheduler = DDIMScheduler(set_alpha_to_one=False)
    hook = Prune(looking(model, sigmas=(0.3,), draws=2, seed=5), [Cut(0.0, 1)], num_prompts=2)
    run(pipeline, hook, kind, noise(channels=16 if kind == "sd35" else 4))
    assert model.calls == [dict(sigmas=(0.3,), draws=2, seed=5)] and hook.selections[0].sigma == 0


KINDS = {
    "sd3": {},
    "flux": {},
    "flux_schnell": {},
    "qwen_image": dict(guidance_scale=None),
    "zimage": dict(guidance_scale=0.0),
    "sdxl": dict(guidance_scale=5.0),
    "sd15": dict(guidance_scale=5.0),
}
TRUE_GUIDANCE = {
    "flux": dict(true_cfg_scale=2.0, negative_prompt=["", ""]),
    "qwen_image": dict(true_cfg_scale=2.0, negative_prompt=["", ""], guidance_scale=None),
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*KINDS.items(), *TRUE_GUIDANCE.items()],
    ids=[*KINDS, *(f"{kind}-guided" for kind in TRUE_GUIDANCE)],
)
def test_whoever_stays_ends_where_it_would_have_ended(load, kind, settings) -> None:
    """Whatever a pipeline holds of each sample must follow those that stay: else they would end elsewhere."""
    pipeline, channels = load(kind), 4 if kind in ("sdxl", "sd15") else 16
    begin = noise(channels=channels)
    whole = run(pipeline, None, kind, begin, **settings)
    network = pipeline.unet if kind in ("sdxl", "sd15") else pipeline.transformer
    seen = sizes_seen(network)
    hook = Prune(looking(), [Cut(0.95, 3), Cut(0.5, 1)], num_prompts=2, **SIZE)
    latents = run(pipeline, hook, kind, begin, **settings)
    assert len(latents) == 2 and torch.allclose(latents, whole[hook.ancestry], atol=1e-4)
    assert len({ancestor // EACH for ancestor in hook.ancestry.tolist()}) == 2
    assert min(seen)[0] < max(seen)[0] and all(states == texts for states, texts in seen)
    assert not network._forward_pre_hooks
    assert torch.equal(run(pipeline, None, kind, begin, **settings), whole)


def test_clips_are_pruned(load) -> None:
    pipeline = load("wan")
    begin = torch.randn(EACH, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = dict(
        height=64, width=64, num_frames=5, num_inference_steps=STEPS, output_type="latent", guidance_scale=5.0,
        num_videos_per_prompt=EACH, latents=begin,
    )  # fmt: skip
    whole = pipeline("a red fox", **asked).frames
    hook = Prune(looking(text=TEXT[:1]), [Cut(0.9, 2)])
    pruned = pipeline(
        "a red fox", callback_on_step_end=hook, callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline), **asked
    ).frames
    assert len(pruned) == 2 and torch.allclose(pruned, whole[hook.ancestry], atol=1e-4)


@pytest.mark.parametrize("kind", ["sd35", "sdxl"])
def test_what_a_scheduler_remembers_follows_the_samples(load, kind) -> None:
    """Multistep and second-order schedulers keep what earlier steps said of each sample."""
    pipeline = load(kind)
    if kind == "sd35":
        pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
    begin = noise(channels=16 if kind == "sd35" else 4)
    whole = run(pipeline, None, kind, begin)
    hook = Prune(looking(), [Cut(0.9, 2), Cut(0.5, 1)], num_prompts=2)
    assert torch.allclose(run(pipeline, hook, kind, begin), whole[hook.ancestry], atol=1e-4)


def test_remembering_touches_only_what_has_the_samples_shape() -> None:
    scheduler = SimpleNamespace(sigmas=torch.arange(4.0), outputs=[None, torch.arange(8.0).view(4, 2)], name="x")
    remember(scheduler, torch.Size([4, 2]), torch.tensor([3, 1]))
    assert scheduler.outputs[0] is None and scheduler.outputs[1].tolist() == [[6, 7], [2, 3]]
    assert scheduler.sigmas.tolist() == [0, 1, 2, 3]


def test_a_run_that_was_cut_short_leaves_nothing_behind(load) -> None:
    class Fails(Picky):
        def score(self, **asked):
            raise KeyboardInterrupt

    pipeline = load("flux")
    whole = run(pipeline, None, "flux")
    hook = Prune(looking(Fails()), [Cut(0.9, 2), Cut(0.0, 1)], num_prompts=2, **SIZE)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, hook, "flux")
    assert torch.equal(run(pipeline, None, "flux"), whole)
    hook._start(None, 2)
    assert not pipeline.transformer._forward_pre_hooks


class LateFlow(FlowNoise):
    """Noise in the steps but the first, of which a callback sees only the end."""

    def transition(self, state, velocity, following, first):
        if float(state.sigma[0]) < 1:
            return super().transition(state, velocity, following, first)
        return Transition(state.noised_latents + (following - 1) * velocity, 0.0)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1e3])
def test_resampling_is_that_of_the_function(load, temperature) -> None:
    pipeline = load("sd35")
    ours = Reference.of(pipeline)
    hook = Resample(looking(), temperature=temperature, seeds=(3, 4), noise=0.7)
    latents = run(pipeline, hook)
    found = smc(
        ours.field(), noise(), ours.text, ours.grid, looking(),
        temperature=temperature, seeds=(3, 4), step_noise=LateFlow(0.7),
    )  # fmt: skip
    assert hook.ancestry.tolist() == found.ancestry.tolist()
    assert torch.allclose(latents, found.latents, atol=1e-3)
    assert torch.allclose(hook.weights.log_weights, found.log_weights, rtol=1e-2, atol=1e-2)
    assert len(set(hook.ancestry.tolist())) == (8 if temperature == 1e3 else len(set(found.ancestry.tolist())))


@pytest.mark.parametrize("kind", ["flux", "zimage", "sdxl"])
def test_resampling_works_where_rows_cannot_be_dropped(load, kind) -> None:
    pipeline, begin = load(kind), noise(channels=4 if kind == "sdxl" else 16)
    settings = dict(guidance_scale=2.0)
    whole = run(pipeline, None, kind, begin, **settings)
    hook = Resample(looking(), temperature=1e-3, seeds=(0, 0), noise=None, **SIZE)
    latents = run(pipeline, hook, kind, begin, **settings)
    assert len(latents) == 8 and torch.allclose(latents, whole[hook.ancestry], atol=1e-4)
    assert len(set(hook.ancestry.tolist())) < 8
    assert [ancestor // EACH for ancestor in hook.ancestry.tolist()] == [0] * EACH + [1] * EACH


@pytest.mark.parametrize("relative", [False, True])
def test_guidance_is_that_of_the_function(load, relative) -> None:
    pipeline = load("sd35")
    ours = Reference.of(pipeline)
    asked = dict(scale=0.2 if relative else 40.0, band=(0.0, 0.95), relative=relative)
    latents = run(pipeline, GuideByReward(looking(), num_prompts=2, **asked))
    found = prune(
        ours.field(), noise(), ours.text, ours.grid, looking(), [],
        guidance=RewardGuidance(looking(), **asked),
    )  # fmt: skip
    with torch.no_grad():
        text = ours.text[torch.tensor([0, 1]).repeat_interleave(EACH)]
        plain = rollout(ours.field(), noise(), text, ours.grid).latents
    assert torch.allclose(latents, found.latents, atol=1e-3)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(EACH)
    assert bool((signs * (latents - plain).flatten(1).mean(dim=1) > 0.01).all())


def test_guidance_reaches_packed_latents(load) -> None:
    pipeline = load("flux")
    plain = run(pipeline, None, "flux")
    hook = GuideByReward(looking(), scale=0.3, band=(0.0, 0.95), relative=True, num_prompts=2, **SIZE)
    moved = (run(pipeline, hook, "flux") - plain).flatten(1).mean(dim=1)
    assert bool((torch.tensor([1.0, -1.0]).repeat_interleave(EACH) * moved > 0.01).all())


def test_what_a_pipeline_cannot_do_is_said(load) -> None:
    pipeline = load("sd35")
    hook = Prune(looking(), [Cut(0.9, 2)], num_prompts=2)
    with pytest.raises(ConfigError, match="was not given prompt_embeds, pooled_prompt_embeds"):
        run(pipeline, hook, inputs=["latents"])
    with pytest.raises(ValueRangeError, match="cannot keep 5 of the 4 samples"):
        run(pipeline, Prune(looking(), [Cut(0.5, 5)], num_prompts=2))
    with pytest.raises(ShapeError, match="8 samples cannot be shared evenly by 3 prompts"):
        run(pipeline, Prune(looking(), [Cut(0.5, 1)], num_prompts=3))
    with pytest.raises(ConfigError, match="ZImagePipeline under guidance counts its samples"):
        run(load("zimage"), hook, "zimage", guidance_scale=3.0)
    sdxl = load("sdxl")
    sdxl.scheduler = EulerDiscreteScheduler.from_config(sdxl.scheduler.config)
    with pytest.raises(ConfigError, match="guidance needs the plain Euler steps.*EulerDiscreteScheduler"):
        run(sdxl, GuideByReward(looking(), scale=1.0), "sdxl", noise(channels=4))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(ConfigError, match="noise in the steps needs the plain Euler steps"):
        run(pipeline, Resample(looking(), temperature=1.0, seeds=(0, 0)))
    stranger = SimpleNamespace(transformer=torch.nn.Linear(1, 1), _callback_tensor_inputs=["latents"])
    with pytest.raises(ConfigError, match="not known what SimpleNamespace holds"):
        hook._start(stranger, 8)


def test_a_network_that_goes_on_with_all_is_noticed(load) -> None:
    """Such as one whose compiled form was made before the hook: FLUX with one sample left would be broadcast to all."""
    pipeline = load("flux")
    hook = Prune(looking(text=TEXT[:1]), [Cut(0.9, 1)], **SIZE)
    narrow = hook._narrow

    def deaf(at):
        narrow(at)
        hook._narrowing.handle.remove()

    hook._narrow = deaf
    with pytest.raises(ConfigError, match="after a choice of 1 samples FluxPipeline went on with 4"):
        run(pipeline, hook, "flux", noise(EACH), words=["a red fox"])


def test_rewards_that_failed_are_never_kept(load) -> None:
    class Broken(Picky):
        def score_state(self, state, conditioning):
            found = super().score_state(state, conditioning).reward
            found[found == found.max()] = math.nan
            return SimpleNamespace(reward=found)

    hook = Prune(looking(Broken()), [Cut(0.9, 1)], num_prompts=2)
    run(load("sd35"), hook)
    worst = hook.selections[0].reward.isnan().nonzero().flatten().tolist()
    assert len(worst) == 1 and worst[0] not in hook.ancestry.tolist()
