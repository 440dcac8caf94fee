"""Weights that hide nothing."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomise(network: nn.Module, seed: int) -> None:
    """Draw every parameter anew.

    The libraries' own initialisers leave gates and modulations at zero, and biases too: with them, a block that is fed the
    wrong time or the wrong text gives the right numbers all the same. Variance is one over the fan-in, so that activations stay
    near one in depth.

    Args:
        network: changed in place.
        seed: of its own generator.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if _is_gain(name, parameter):
            parameter.copy_(1.0 + 0.2 * draw)
        elif parameter.ndim < 2:
            parameter.copy_(0.2 * draw)
        else:
            fan_in = parameter.numel() // parameter.shape[0]
            parameter.copy_(draw / fan_in**0.5)
    network.eval()


def _is_gain(name: str, parameter: nn.Parameter) -> bool:
    """The video autoencoders call theirs gamma, and give it axes for time and space."""
    return (name.endswith("weight") and parameter.ndim == 1) or name.endswith("gamma")
