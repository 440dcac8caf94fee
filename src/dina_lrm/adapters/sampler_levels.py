"""Where a sampler of diffusers stands after a step: its latents and its scheduler, in this house's terms.

Flow-matching schedulers keep `x = (1 - s) x0 + s noise`, and s is sigma as it is. Those of the trained betas keep one of two:
variance preserving, `x = sqrt(1 - sigma^2) x0 + sigma noise` with `sigma = sqrt(1 - alphas_cumprod)`; or variance exploding
(Euler and its kin), `x = x0 + s noise`, which the network is given divided by `sqrt(1 + s^2)`: then
`sigma = s / sqrt(1 + s^2)`. The level is the one that the network is told at the step to come; after the last step it is
what the scheduler says is left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dina_lrm.backbones.network import unpacked
from dina_lrm.errors import ConfigError, ShapeError
from dina_lrm.types import NoisedState

PATCH = 2  # FLUX and Qwen-Image pack latents 2 x 2


def state_after(scheduler: Any, step: int, num_steps: int, timestep: Any, latents: Tensor) -> NoisedState:
    """The noised state that a sampler holds after a step.

    Args:
        scheduler: of the pipeline, as it stands.
        step: number of the step, from 0.
        num_steps: of this run of the sampler.
        timestep: that the network was told at the step.
        latents: after the step `[b c h w]`.

    Returns:
        Noised latents as the network takes them, and their sigma in [0, 1].

    Raises:
        ConfigError: the scheduler is of a kind whose levels are not known here.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if sigmas is not None and _is_flow(scheduler):
        sigma, scale = float(sigmas[_index(scheduler, step, num_steps, timestep)]), 1.0
    elif sigmas is not None and cumulative is not None:
        spread = float(sigmas[_index(scheduler, step, num_steps, timestep)])
        sigma = spread / math.sqrt(1 + spread**2)
        scale = 1 / math.sqrt(1 + spread**2) if _is_exploding(scheduler) else 1.0
    elif cumulative is not None:
        sigma, scale = _sigma_of_alphas(scheduler, cumulative, _index(scheduler, step, num_steps, timestep)), 1.0
    else:
        sigma, scale = math.nan, 1.0
    if not 0 <= sigma <= 1:
        raise ConfigError(
            f"the noise levels of {type(scheduler).__name__} are not known here; use a flow-matching scheduler, or one of the "
            "Euler, DDIM, DDPM, PNDM, DPM++ or UniPC kind"
        )
    return NoisedState(latents * scale, torch.full((len(latents),), sigma, device=latents.device))


def _is_flow(scheduler: Any) -> bool:
    named = any(kind.__name__.startswith("FlowMatch") for kind in type(scheduler).__mro__)
    return named or bool(scheduler.config.get("use_flow_sigmas", False))


def _is_exploding(scheduler: Any) -> bool:
    """Whether latents start as noise of a deviation other than 1, which the network is never given."""
    return abs(float(scheduler.init_noise_sigma) - 1) > 1e-6


def _sigma_of_alphas(scheduler: Any, cumulative: Tensor, index: int) -> float:
    timesteps = scheduler.timesteps
    if index >= len(timesteps):
        return math.sqrt(max(0.0, 1 - float(getattr(scheduler, "final_alpha_cumprod", 1.0))))
    return math.sqrt(1 - float(cumulative[int(timesteps[index])]))


def _index(scheduler: Any, step: int, num_steps: int, timestep: Any) -> int:
    """Place in the schedule of the level after the step."""
    index = getattr(scheduler, "step_index", None)
    if index is not None:
        return int(index)
    timesteps = [float(one) for one in scheduler.timesteps]
    # A run that begins from a picture leaves out the first of the schedule.
    begun = step + len(timesteps) - num_steps
    if 0 <= begun < len(timesteps) and timesteps[begun] == float(timestep):
        return begun + 1
    if timesteps.count(float(timestep)) == 1:
        return timesteps.index(float(timestep)) + 1
    raise ConfigError(
        f"timestep {float(timestep):g} of step {step} is not in the schedule of {type(scheduler).__name__}"
    )


def num_steps_of(pipeline: Any) -> int:
    """Steps of this run, which may be fewer than the schedule has."""
    steps = getattr(pipeline, "num_timesteps", None)
    return len(pipeline.scheduler.timesteps) if steps is None else int(steps)


def unpacked_latents(pipeline: Any, latents: Tensor, height: int | None, width: int | None) -> Tensor:
    """Latents `[b c h w]` out of tokens `[b n 4c]`, where the pipeline packs them; others as they are.

    Args:
        pipeline: whose they are.
        latents: as it hands them to callbacks.
        height: of the pictures in pixels; needed where they are packed.
        width: the same.

    Raises:
        ConfigError: packed, and no height and width.
        ShapeError: pictures of that size have another number of tokens.
    """
    if latents.ndim != 3:
        return latents
    if height is None or width is None:
        raise ConfigError(
            f"{type(pipeline).__name__} packs its latents into tokens, which do not say their shape: give height and width"
        )
    rows, columns = (side // (pipeline.vae_scale_factor * PATCH) for side in (height, width))
    batch, tokens, numbers = latents.shape
    if rows * columns != tokens:
        raise ShapeError(
            f"pictures of {height} x {width} have {rows} x {columns} tokens, the sampler has {tokens}; give the "
            "height and width that it was given"
        )
    return unpacked(latents, (batch, numbers // PATCH**2, rows * PATCH, columns * PATCH), PATCH)
