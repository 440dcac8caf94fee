"""A policy samples as its pipeline does, learns beside it, and comes back into it as an ordinary adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from dina_lrm.backbones import AdapterConfig
from dina_lrm.errors import ConfigError
from dina_lrm.generation import Guided, Policy, rollout
from dina_lrm.types import NoisedState
from tests.conformance.sharing import Portrait
from tests.pipelines import build_pipeline

SIDE, STEPS = 64, 3
FLOWS = ("sd35", "sd3", "flux", "flux_schnell", "qwen_image", "zimage")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: build_pipeline(kind, root / kind) for kind in (*FLOWS, "sd15")}


def loaded(folder: Path):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_sample(pipeline, kind: str, noise: torch.Tensor, prompts: list[str], guidance: float) -> torch.Tensor:
    """What the pipeline's own loop makes of noise `[b c h w]`."""
    latents = noise
    if kind.startswith("flux") or kind == "qwen_image":
        latents = pipeline._pack_latents(noise, *noise.shape)
    words = dict(negative_prompt=[""] * len(prompts)) if guidance != 1 else {}
    scale = {"qwen_image": "true_cfg_scale", "flux": "true_cfg_scale", "flux_schnell": "true_cfg_scale"}
    found = pipeline(
        prompts,
        num_inference_steps=STEPS,
        latents=latents,
        height=SIDE,
        width=SIDE,
        output_type="latent",
        max_sequence_length=16,
        **words,
        **{scale.get(kind, "guidance_scale"): guidance},
    ).images
    if found.ndim == 3:
        found = pipeline._unpack_latents(found, SIDE, SIDE, pipeline.vae_scale_factor)
    return found.view(noise.shape)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_rollout_is_what_the_pipeline_samples(folders, kind) -> None:
    pipeline = loaded(folders[kind])
    policy = Policy(pipeline)
    backbone = policy.backbone
    factor = SIDE // (backbone.vae_factor)
    noise = torch.randn(2, backbone.latent_channels, factor, factor, generator=torch.Generator().manual_seed(0))
    conditioning = backbone.encode_prompts(["a red fox", "two owls"], 16)
    sigmas = backbone.sampler_sigmas(STEPS, noise.shape[1:])
    unguided = 0.0 if kind == "zimage" else 1.0
    with torch.no_grad():
        ours = rollout(policy, noise, conditioning, sigmas).latents
        theirs = own_sample(pipeline, kind, noise, ["a red fox", "two owls"], unguided)
    assert torch.allclose(ours, theirs, atol=1e-4), float((ours - theirs).abs().max())


def test_guidance_is_the_pipelines(folders) -> None:
    pipeline = loaded(folders["sd35"])
    policy = Policy(pipeline)
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    text, negative = (policy.backbone.encode_prompts(words, 16) for words in (["a red fox", "two owls"], [""]))
    with torch.no_grad():
        ours = rollout(
            Guided(policy, negative, 3.5), noise, text, policy.backbone.sampler_sigmas(STEPS, noise.shape[1:])
        )
        theirs = own_sample(pipeline, "sd35", noise, ["a red fox", "two owls"], 3.5)
    assert torch.allclose(ours.latents, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", FLOWS)
def test_what_was_learned_loads_into_the_pipeline_with_one_line(folders, kind, tmp_path) -> None:
    pipeline = loaded(folders[kind])
    policy = Policy(pipeline, AdapterConfig(rank=3, alpha=6))
    generator = torch.Generator().manual_seed(5)
    for value in policy.trained.values():
        value.data = torch.randn(value.shape, generator=generator) * 0.05
    policy.save_pretrained(tmp_path / "adapter")
    state = policy_state(policy)
    with torch.no_grad():
        learned = policy(*state)
        with policy.reference():
            before = policy(*state)
    other = loaded(folders[kind])
    other.load_lora_weights(tmp_path / "adapter")
    other.fuse_lora()
    other.unload_lora_weights()
    with torch.no_grad():
        assert torch.allclose(Policy(other)(*state), learned, atol=1e-5)
        assert not torch.allclose(before, learned, atol=1e-3)
        assert torch.equal(before, Policy(loaded(folders[kind]))(*state))
    fresh = Policy(pipeline, AdapterConfig(rank=3, alpha=6))
    fresh.load_adapter(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(fresh(*state), learned)


def policy_state(policy: Policy):
    noise = torch.randn(1, policy.backbone.latent_channels, 8, 8, generator=torch.Generator().manual_seed(2))
    return NoisedState(noise, torch.tensor([0.6])), policy.backbone.encode_prompts(["a red fox"], 16)


def test_base_weights_exist_once_and_the_pipeline_is_left_as_it_was(folders) -> None:
    pipeline = loaded(folders["sd35"])
    Policy(pipeline).backbone.encode_prompts(["a"], 16)  # transformers marks the encoders that it has asked
    portrait = Portrait(pipeline)
    policy = Policy(pipeline)
    theirs = {value.data_ptr() for value in pipeline.transformer.parameters()}
    ours = {v.data_ptr() for n, v in policy.backbone.network.named_parameters() if "lora_" not in n}
    assert ours <= theirs
    policy(*policy_state(policy)).sum().backward()
    assert all(value.grad is not None for value in policy.trained.values())
    portrait.check(pipeline)


def test_a_pipeline_that_samples_from_the_policy(folders) -> None:
    pipeline = loaded(folders["sd35"])
    policy = Policy(pipeline)
    sampling = policy.sampling_pipeline()
    assert sampling.transformer is policy.backbone.network and pipeline.transformer is not sampling.transformer


def test_who_predicts_no_velocity_or_holds_adapters_is_refused(folders) -> None:
    policy = Policy(loaded(folders["sd15"]))
    state = policy_state(policy)
    with pytest.raises(ConfigError, match="Sd15Backbone predicts no velocity"):
        policy(*state)
    pipeline = loaded(folders["sd35"])
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="theirs")
    with pytest.raises(ConfigError, match="theirs"):
        Policy(pipeline)


def test_decoding_makes_a_graph_only_for_latents_that_ask_for_one(folders) -> None:
    backbone = Policy(loaded(folders["sd35"])).backbone
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not backbone.decode_latents(latents).requires_grad
    asking = latents.clone().requires_grad_()
    backbone.decode_latents(asking).sum().backward()
    assert asking.grad is not None and asking.grad.abs().sum() > 0
