"""Attention over image tokens, laid out over the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError


def attention_map(
    weights: Tensor, num_tokens: Sequence[int], scales: Sequence[int], latents_shape: Sequence[int]
) -> Tensor:
    """Weights of image tokens as a picture on the grid of the finest tap.

    A coarser token's weight is spread evenly over the cells that it covers, and the scales add up, so the sum over the
    picture stays what it was over the tokens.

    Args:
        weights: `[b q n]`, scales behind each other as `MergeTaps` lays them: the coarsest first.
        num_tokens: of each image tap.
        scales: of each image tap, as in `FeatureShape.image_scales`.
        latents_shape: of the noised latents, `[b c h w]`.

    Returns:
        `[b q y x]`, y and x the token grid of the finest tap.

    Raises:
        ShapeError: latents of a video, weights of another number of tokens (such as several joined levels), or a number
            of tokens that no grid over these latents has.
    """
    if len(latents_shape) != 4:
        raise ShapeError(f"attention is mapped over pictures, latents [b c h w]; got {list(latents_shape)}")
    tokens = dict(zip(scales, num_tokens, strict=True))
    if weights.shape[-1] != sum(tokens.values()):
        raise ShapeError(
            f"weights must be of the {sum(tokens.values())} image tokens of one noise level, got {weights.shape[-1]}"
        )
    height, width = latents_shape[-2:]
    order = sorted(tokens, reverse=True)
    grids = [_grid(tokens[scale], height, width) for scale in order]
    finest_height, finest_width = grids[-1]
    whole = weights.new_zeros(*weights.shape[:-1], finest_height, finest_width)
    for part, (y, x) in zip(torch.split(weights, [tokens[scale] for scale in order], dim=-1), grids, strict=True):
        down, across = finest_height // y, finest_width // x
        if (down * y, across * x) != (finest_height, finest_width):
            raise ShapeError(f"a grid of {y} x {x} tokens does not fit one of {finest_height} x {finest_width}")
        coarse = part.view(*part.shape[:-1], y, x) / (down * across)
        whole = whole + coarse.repeat_interleave(down, -2).repeat_interleave(across, -1)
    return whole


def _grid(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens, each a square of latents."""
    side = max(1, math.isqrt(height * width // num_tokens))
    if height % side or width % side or (height // side) * (width // side) != num_tokens:
        raise ShapeError(f"{num_tokens} image tokens are no grid of squares over latents of {height} x {width}")
    return height // side, width // side
