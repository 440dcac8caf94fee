"""Readings through the network: in passes of a bounded number of states."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dina_lrm.errors import WorkError
from dina_lrm.model import RewardNetwork
from dina_lrm.scoring.chunks import in_chunks
from dina_lrm.scoring.questions import Reading
from dina_lrm.types import Features, NoisedState


def read(network: RewardNetwork, reading: Reading, size: int, gradient_checkpointing: bool = False) -> Tensor:
    """Utilities that a reading asks for, in passes of at most `size` states; out of memory halves them (`in_chunks`).

    Args:
        network: backbone and head.
        reading: states, prompts, and how many states are read as one.
        size: most states in one pass of the backbone.
        gradient_checkpointing: keep no activations of a pass for the gradient, compute them again.

    Returns:
        `[len(reading)]`, float32.

    Raises:
        WorkError: a single state does not fit, or a utility is not finite.
    """
    with_gradient = _needs_gradient(network, reading)
    recompute = gradient_checkpointing and with_gradient
    if reading.joined == 1:

        def utilities(part: slice) -> Tensor:
            state, conditioning = reading.state[part], reading.conditioning[reading.rows[part]]
            if not recompute:
                return network(state, conditioning)

            def again(noised_latents: Tensor) -> Tensor:
                return network(NoisedState(noised_latents, state.sigma), conditioning)

            return checkpoint(again, state.noised_latents, use_reentrant=False)

        once = with_gradient or network.dealt_out
        utility = in_chunks(len(reading), size, utilities, lambda parts: torch.cat(list(parts)), once)
    else:
        units = max(1, size // reading.joined)
        parts = [reading[start : start + units] for start in range(0, len(reading), units)]
        utility = torch.cat([_joined(network, part, size, with_gradient, recompute) for part in parts])
    _require_finite(utility)
    return utility


def _joined(network: RewardNetwork, reading: Reading, size: int, with_gradient: bool, recompute: bool) -> Tensor:
    """Utilities of joined tokens: the backbone reads `size` states at once, the head a unit's states together."""
    sigma, rows = reading.state.sigma, reading.rows

    def utility(noised_latents: Tensor) -> Tensor:
        def features(part: slice) -> Features:
            state = NoisedState(noised_latents[part], sigma[part])
            return network.features(state, reading.conditioning[rows[part]])

        seen = in_chunks(len(rows), size, features, Features.cat, with_gradient or network.dealt_out)
        return network.read_joined([seen[level :: reading.joined] for level in range(reading.joined)])

    if recompute:
        return checkpoint(utility, reading.state.noised_latents, use_reentrant=False)
    return utility(reading.state.noised_latents)


def _needs_gradient(network: RewardNetwork, reading: Reading) -> bool:
    if not torch.is_grad_enabled():
        return False
    return reading.state.noised_latents.requires_grad or any(p.requires_grad for p in network.parameters())


def _require_finite(utility: Tensor) -> None:
    """A number that is none must not be ranked."""
    if not torch.isfinite(utility).all():
        raise WorkError(
            f"the model gave {int((~torch.isfinite(utility)).sum())} utilities that are not finite; float16 overflows in some "
            "networks: load the base in bfloat16 or float32"
        )
