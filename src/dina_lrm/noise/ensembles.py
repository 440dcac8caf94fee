"""Which noised states one score looks at: levels of sigma, draws of noise."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.noise.draws import SeededNoise

Fusion = Literal["mean", "tokens", "weighted"]
Drawing: TypeAlias = MutableMapping[tuple[tuple[int, ...], int], SeededNoise]  # by shape and seed: where each stands


def _is_whole(number: object) -> bool:
    return isinstance(number, int)


@dataclass(frozen=True)
class Adaptive:
    """Draw until the question is decided: a number of draws that the samples themselves settle.

    A comparison or a ranking stops when it is known but for `error_rate` who leads by the mean of all `max_draws` draws
    (see `dina_lrm.metrics.sequential`), or that the two are a tie by then; a score when its standard error is small enough,
    widened by Student's t as long as the draws are few.

    Attributes:
        max_draws: the budget: draws of noise at every level.
        error_rate: how often, at most, the leader may be another than that of the whole budget.
        standard_error: of a score, in utility; needed for `score`, and read by it alone.
    """

    max_draws: int = 9
    error_rate: float = 0.05
    standard_error: float | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.max_draws) or self.max_draws < 2:
            raise ValueRangeError(f"max_draws must be a whole number of 2 or more, got {self.max_draws}")
        if not 0 < self.error_rate < 0.5:
            raise ValueRangeError(f"error_rate must lie between 0 and 0.5, got {self.error_rate:g}")
        if self.standard_error is not None and not self.standard_error > 0:
            raise ValueRangeError(f"standard_error must be above 0, got {self.standard_error:g}")


@dataclass(frozen=True)
class NoiseEnsemble:
    """Every level meets every draw, and a draw is the same noise tensor at all levels (paper, equation 7).

    Attributes:
        sigmas: noise levels, each in [0, 1].
        draws: noise tensors a level, or a rule that settles how many.
        fusion: "mean" averages the utilities; "weighted" weighs each level by the inverse of its variance under the law
            of choice; "tokens" joins the levels' tokens and reads them once a draw.
        antithetic: draws come in pairs of a noise and its negative, whose errors cancel to first order.
    """

    sigmas: tuple[float, ...] = (0.4,)
    draws: int | Adaptive = 1
    fusion: Fusion = "mean"
    antithetic: bool = False

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 <= sigma <= 1 for sigma in self.sigmas):
            raise ValueRangeError(f"sigmas must be one or more levels in [0, 1], got {self.sigmas}")
        if not _is_whole(self.max_draws):
            raise ValueRangeError(f"draws must be a whole number or Adaptive, got {self.draws}")
        if self.max_draws < 1:
            raise ValueRangeError(f"draws must be 1 or more, got {self.draws}")
        if self.fusion not in get_args(Fusion):
            raise ConfigError(f"fusion must be one of {', '.join(get_args(Fusion))}, got {self.fusion!r}")
        if self.antithetic and self.max_draws % 2:
            raise ValueRangeError(f"antithetic draws come in pairs: their number must be even, got {self.max_draws}")

    @property
    def max_draws(self) -> int:
        """Draws a level at most."""
        return self.draws.max_draws if isinstance(self.draws, Adaptive) else self.draws

    @property
    def step(self) -> int:
        """Draws that are independent of all others only together: 2 of an antithetic pair, else 1."""
        return 2 if self.antithetic else 1

    @property
    def columns(self) -> int:
        """Utilities that one draw gives: one a level, or one for all with "tokens"."""
        return 1 if self.fusion == "tokens" else len(self.sigmas)

    def noise(
        self,
        latents: Tensor,
        seed: int | Sequence[int],
        start: int = 0,
        stop: int | None = None,
        drawing: Drawing | None = None,
    ) -> Tensor:
        """The noise of draws `start` to `stop`: `[draws b c h w]`, on the latents' device and in their dtype.

        One seed serves the whole batch, so that candidates meet the same noise; a sequence gives each sample its own. A
        sample's noise never depends on its neighbours, nor on how many draws follow.

        Args:
            latents: whose shape, device and dtype it takes.
            seed: one for all, or one a sample.
            start: first draw.
            stop: draw after the last; None takes all.
            drawing: kept by whoever asks for draws bit by bit, so that none is drawn twice.

        Raises:
            ShapeError: as many seeds as samples were not given.
        """
        stop = self.max_draws if stop is None else stop
        shape, drawing = tuple(latents.shape[1:]), {} if drawing is None else drawing
        if isinstance(seed, int):
            noise = self._draws(shape, seed, start, stop, drawing).unsqueeze(1).expand(stop - start, *latents.shape)
        elif len(seed) != len(latents):
            raise ShapeError(f"{len(latents)} samples need one seed or {len(latents)}, got {len(seed)}")
        else:
            drawn = {one: self._draws(shape, one, start, stop, drawing) for one in dict.fromkeys(seed)}
            noise = torch.stack([drawn[one] for one in seed], dim=1)
        return noise.to(latents)

    def _draws(self, shape: tuple[int, ...], seed: int, start: int, stop: int, drawing: Drawing) -> Tensor:
        if (shape, seed) not in drawing:
            drawing[shape, seed] = SeededNoise(shape, seed)
        draw = drawing[shape, seed]
        if not self.antithetic:
            return draw(start, stop)
        pairs = draw(start // 2, (stop + 1) // 2)
        return torch.stack([pairs, -pairs], dim=1).flatten(0, 1)[start % 2 : start % 2 + stop - start]
