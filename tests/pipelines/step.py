"""One denoising step of diffusers' own pipeline code, at the noise level that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

_PIXELS_PER_LATENT = 8
_FRAMES_PER_LATENT = 4
_UNETS = ("sdxl", "sd15")
_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@dataclass(frozen=True)
class _OneStep:
    """What the step starts from.

    Args:
        prompts: one a state.
        latents: noised, as the network was trained on them [b c h w], of Wan [b c f h w].
        sigma: 0..1, share of noise; of a UNet sqrt(1 - alphas_cumprod[t]) at a whole t.
        max_sequence_length: of the longest text encoder, in tokens.
    """

    prompts: list[str]
    latents: Tensor
    sigma: float
    max_sequence_length: int


class _OneSigma(FlowMatchEulerDiscreteScheduler):
    """WanPipeline takes no `sigmas`: the scheduler itself has to know better than its steps."""

    sigma: float

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        super().set_timesteps(device=device, sigmas=[self.sigma])


def run_one_step(
    pipeline: Any, kind: str, prompts: list[str], latents: Tensor, sigma: float, max_sequence_length: int
) -> None:
    """What the networks see and say is for hooks; there is no classifier-free guidance.

    Args:
        pipeline: of `build_pipeline`, loaded.
        kind: its kind.
        prompts: one a state.
        latents: noised [b c h w], of Wan [b c f h w].
        sigma: 0..1; of a UNet one that `sigma_at` gives.
        max_sequence_length: in tokens; the UNets have no say in it.
    """
    # Z-Image writes its chat template into the list that it is given.
    step = _OneStep(list(prompts), latents, sigma, max_sequence_length)
    pipeline.set_progress_bar_config(disable=True)
    with _scheduler(pipeline, _ddpm() if kind in _UNETS else _one_sigma(sigma)):
        pipeline(**_arguments(pipeline, kind, step), prompt=step.prompts, output_type="latent", return_dict=False)


def sigma_at(timestep: int) -> float:
    """The share of noise that a UNet meets at a whole time step, 0..999: sqrt(1 - alphas_cumprod[t])."""
    return float((1.0 - _ddpm().alphas_cumprod[timestep]).sqrt())


@contextmanager
def _scheduler(pipeline: Any, scheduler: Any) -> Iterator[None]:
    own = pipeline.scheduler
    pipeline.scheduler = scheduler
    try:
        yield
    finally:
        pipeline.scheduler = own


def _one_sigma(sigma: float) -> FlowMatchEulerDiscreteScheduler:
    """Without the shifts of the real schedules: they would move sigma."""
    scheduler = _OneSigma(shift=1.0, use_dynamic_shifting=False)
    scheduler.sigma = sigma
    return scheduler


def _ddpm() -> DDPMScheduler:
    """Gives the network the latents as they are, where EulerDiscrete divides them by sqrt(sigma² + 1)."""
    return DDPMScheduler(**_BETAS)


def _timestep(sigma: float) -> int:
    distance = ((1.0 - _ddpm().alphas_cumprod).sqrt() - sigma).abs()
    nearest = int(distance.argmin())
    if distance[nearest] > 1e-5:
        raise ValueError(f"no time step has sigma {sigma}; the nearest is {sigma_at(nearest)} at {nearest}")
    return nearest


def _arguments(pipeline: Any, kind: str, step: _OneStep) -> dict[str, Any]:
    height, width = (_PIXELS_PER_LATENT * side for side in step.latents.shape[-2:])
    common: dict[str, Any] = dict(height=height, width=width, latents=step.latents)
    if kind in _UNETS:
        # DDPM draws noise for the state that comes next: not from the stream that others have seeded.
        generator = torch.Generator().manual_seed(0)
        return {**common, "timesteps": [_timestep(step.sigma)], "guidance_scale": 1.0, "generator": generator}
    common["max_sequence_length"] = step.max_sequence_length
    if kind == "wan":
        frames = _FRAMES_PER_LATENT * (step.latents.shape[2] - 1) + 1
        return {**common, "num_frames": frames, "num_inference_steps": 1, "guidance_scale": 1.0}
    common |= {"sigmas": [step.sigma], "num_inference_steps": 1}
    match kind:
        case "flux" | "flux_schnell":
            return {**common, "latents": _packed(pipeline, step.latents), "guidance_scale": 3.5}
        case "qwen_image":
            return {**common, "latents": _packed(pipeline, step.latents), "true_cfg_scale": 1.0}
        case "zimage":
            return {**common, "guidance_scale": 0.0}
        case _:
            return {**common, "guidance_scale": 1.0}


def _packed(pipeline: Any, latents: Tensor) -> Tensor:
    return pipeline._pack_latents(latents, *latents.shape)
