"""Which noised states one score looks at: levels of sigma, draws of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.noise.draws import seeded_noise

Fusion = Literal["mean", "tokens"]


@dataclass(frozen=True)
class NoiseEnsemble:
    """Every level meets every draw, and a draw is the same noise tensor at all levels (paper, equation 7).

    Attributes:
        sigmas: noise levels, each in [0, 1].
        draws: noise tensors a level.
        fusion: "mean" averages the utilities; "tokens" joins the levels' tokens and reads them once a draw.
    """

    sigmas: tuple[float, ...] = (0.4,)
    draws: int = 1
    fusion: Fusion = "mean"

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 <= sigma <= 1 for sigma in self.sigmas):
            raise ValueRangeError(f"sigmas must be one or more levels in [0, 1], got {self.sigmas}")
        if self.draws < 1:
            raise ValueRangeError(f"draws must be 1 or more, got {self.draws}")
        if self.fusion not in get_args(Fusion):
            raise ConfigError(f"fusion must be one of {', '.join(get_args(Fusion))}, got {self.fusion!r}")

    def noise(self, latents: Tensor, seed: int | Sequence[int]) -> Tensor:
        """The noise of every draw: `[draws b c h w]`, on the latents' device and in their dtype.

        One seed serves the whole batch, so that candidates meet the same noise; a sequence gives each sample its own. A
        sample's noise never depends on its neighbours.

        Raises:
            ShapeError: as many seeds as samples were not given.
        """
        shape = latents.shape[1:]
        if isinstance(seed, int):
            noise = seeded_noise(shape, seed, self.draws).unsqueeze(1).expand(self.draws, *latents.shape)
        elif len(seed) != len(latents):
            raise ShapeError(f"{len(latents)} samples need one seed or {len(latents)}, got {len(seed)}")
        else:
            noise = torch.stack([seeded_noise(shape, one, self.draws) for one in seed], dim=1)
        return noise.to(latents)
