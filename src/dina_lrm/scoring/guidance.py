"""A reward's gradient as a push on a sampler's velocity.

Of a rectified flow `v = -(s score + x) / (1 - s)`. A density that is tilted by a reward, `p(x) exp(scale r(x))`, has a score
that is greater by `scale grad r`, and so the velocity `v - scale s / (1 - s) grad r` (classifier guidance, Dhariwal and Nichol
2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dina_lrm.errors import ConfigError
from dina_lrm.noise.process import expand_sigma

__all__ = ["gradient_of", "push"]


def gradient_of(reward: Tensor, latents: Tensor) -> Tensor:
    """Gradient of rewards `[b]` to the latents that they were read from.

    Raises:
        ConfigError: there is none.
    """
    if not reward.requires_grad:
        raise ConfigError("the reward gives no gradient to its states; guidance needs a reward model in this process")
    (gradient,) = torch.autograd.grad(reward.sum(), latents)
    return gradient


def push(gradient: Tensor, velocity: Tensor, sigma: float, scale: float, relative: bool) -> Tensor:
    """What guidance takes from a velocity; nothing where a sample's gradient is not finite.

    Args:
        gradient: of the reward `[b c h w]`.
        velocity: of the same shape.
        sigma: level of the state, below 1.
        scale: of the reward; with `relative` the length of the push, in lengths of the velocity.
        relative: take of the gradient its direction alone, so that `scale` depends neither on the reward's units nor on sigma.
    """
    finite = expand_sigma(gradient.flatten(1).isfinite().all(dim=1), gradient)
    gradient = torch.where(finite, gradient, 0.0).to(velocity.dtype)
    if not relative:
        return scale * sigma / (1 - sigma) * gradient
    length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scale * expand_sigma(velocity.flatten(1).norm(dim=1) / length, gradient) * gradient
