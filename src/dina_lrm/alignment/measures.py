"""What samples show without asking any reward: a regular pattern, how loud they are, how far apart, how far from home."""

from __future__ import annotations

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError

__all__ = ["diversity", "grid_score", "latent_norm"]

# Power of rounding to 8 bits, a pixel: what is fainter than it is no pattern that a picture could show.
_ROUNDING = 1 / 12 / 255**2


def grid_score(pictures: Tensor, period: int) -> Tensor:
    """How far the spectrum stands out at the frequencies of a grid: about 0 without one, more the stronger it is.

    `log of the mean over peaks of (P_peak + e) / (P_near + e)`, where the peaks are all multiples of `1 / period`; those of
    lines across, of lines down and all others have a third of the say each. P is the power of a frequency over channels, and
    P_near the mean power of the frequencies between this peak and the next, along the row or along the column, whichever is
    larger: an edge is loud along a whole line. e is the power of rounding to 8 bits. Half the period is looked at as well,
    and the larger score counts: a period of VAE factor times patch size so covers the VAE's own grid too.

    Args:
        pictures: `[b c y x]` with any channels; pixels in 0..1, or latents. Both sides at least twice the period; what is
            more than a multiple of it is cut off.
        period: of the grid, in their units.

    Returns:
        `[b]`, float32.

    Raises:
        ShapeError: not `[b c y x]`, or a side under twice the period.
        ValueRangeError: a period below 2.
    """
    if period < 2:
        raise ValueRangeError(f"the period of a grid must be 2 or more, got {period}")
    if pictures.ndim != 4 or min(pictures.shape[2:]) < 2 * period:
        raise ShapeError(
            f"a grid of period {period} needs pictures [b c y x] with sides of {2 * period} or more, "
            f"got {list(pictures.shape)}"
        )
    tall, wide = (side // period for side in pictures.shape[2:])
    cut = pictures[..., : tall * period, : wide * period].float()
    power = torch.fft.fft2(cut, norm="ortho").abs().square().mean(dim=1)
    score = _standing_out(power, tall, wide)
    return score if period % 4 else torch.maximum(score, _standing_out(power, 2 * tall, 2 * wide))


def _standing_out(power: Tensor, tall: int, wide: int) -> Tensor:
    """The score of the grid that repeats so often down and across."""
    peaks = power[:, ::tall, ::wide]
    near = torch.maximum(_near(power, tall, 1)[:, :, ::wide], _near(power, wide, 2)[:, ::tall])
    ratio = (peaks + _ROUNDING) / (near + _ROUNDING)
    kinds = (ratio[:, 1:, 0], ratio[:, 0, 1:], ratio[:, 1:, 1:].flatten(1))
    return torch.stack([kind.mean(dim=1) for kind in kinds]).mean(dim=0).log()


def _near(power: Tensor, every: int, dim: int) -> Tensor:
    """Mean power of the frequencies nearest to each peak along an axis, half-way to the next on either side."""
    reach = max(1, (every - 1) // 2)
    around = [power.roll(shift, dim) for shift in range(-reach, reach + 1) if shift]
    picked = torch.arange(0, power.shape[dim], every, device=power.device)
    return torch.stack(around).mean(dim=0).index_select(dim, picked)


def latent_norm(latents: Tensor) -> Tensor:
    """Root mean square of each sample `[b c h w]`, `[b]`; near 1 for latents that are standardised."""
    return latents.float().flatten(1).square().mean(dim=1).sqrt()


def diversity(samples: Tensor, group_size: int) -> Tensor:
    """Mean distance between the samples of a prompt: root mean square of their difference, over all pairs.

    Args:
        samples: latents or pixels `[q k ...]`, the first two axes as one.
        group_size: k.

    Returns:
        `[q]`; empty with one sample a prompt.

    Raises:
        ShapeError: samples that the prompts cannot share evenly.
    """
    if group_size < 1 or len(samples) % group_size:
        raise ShapeError(f"{len(samples)} samples cannot be {group_size} of each prompt")
    if group_size == 1:
        return samples.new_empty(0, dtype=torch.float32)
    flat = samples.float().flatten(1)
    groups = flat.view(-1, group_size, flat.shape[1])
    first, second = torch.triu_indices(group_size, group_size, offset=1, device=samples.device)
    return (groups[:, first] - groups[:, second]).square().mean(dim=2).sqrt().mean(dim=1)
