"""Thurstone's law as held-out votes say it: a variance a level, and what averaging over levels and draws is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.preference.likelihoods import Likelihood


@dataclass(frozen=True)
class TabulatedThurstone(Likelihood):
    """`P(a > b) = Phi(margin / s)`, with `s = sqrt(2 var)` fitted at a grid of levels, linear in between.

    Why a table and not `var(sigma) = k sigma^2 + c`: fitted to the same validation pairs of the emoji world, the parabola's
    log loss is a little higher (0.5732 and 0.5726 on other validation prompts, 0.6096 and 0.6094 on test prompts), and on
    test prompts it misses at both ends: an ECE of 0.033 at sigma 0.05 and 0.039 at 0.9, where the table has 0.028 and 0.030
    (`python -m benchmarks.calibration`). k and c are still fitted and told.

    A margin averaged over levels j with weights w, and n draws, is worth more than the mean of its parts, because what the
    levels get wrong is not all the same. With margins in units of their own `s`, calibrated, and correlated by
    `rho_jk = exp(-disagreement |sigma_j - sigma_k|)`, the slope of the best predictor gives

        s_mean = sum_jk w_j w_k s_j s_k rho_jk / sum_j w_j s_j,    s_j = settled_j + (single_j - settled_j) / n.

    A single level and draw is its own table entry; levels that agree wholly (disagreement 0) give the mean of the s.

    Attributes:
        sigmas: the grid, ascending `[k]`.
        single: s of a margin on one draw `[k]`, above 0.
        settled: s of a margin averaged over endless draws `[k]`, above 0 and at most `single`.
        disagreement: how fast two levels come to see different things; 0 or more.
    """

    sigmas: tuple[float, ...]
    single: tuple[float, ...]
    settled: tuple[float, ...]
    disagreement: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigmas or not len(self.sigmas) == len(self.single) == len(self.settled):
            raise ShapeError(
                "a tabulated law needs one value a level, "
                f"got {len(self.sigmas)}, {len(self.single)} and {len(self.settled)} of them"
            )
        if list(self.sigmas) != sorted(set(self.sigmas)):
            raise ValueRangeError(f"levels must stand by ascending sigma, each once, got {list(self.sigmas)}")
        if not all(0 < a <= b for a, b in zip(self.settled, self.single, strict=True)) or not self.disagreement >= 0:
            raise ValueRangeError(
                "settled deviations must be above 0 and at most those of a single draw, disagreement 0 or more; got "
                f"{list(self.settled)}, {list(self.single)} and {self.disagreement:g}"
            )

    def variance(self, sigma: Tensor) -> Tensor:
        """Of one candidate on a single draw: `s(sigma)^2 / 2`."""
        found = np.interp(sigma.detach().cpu().double().numpy(), self.sigmas, self.single)
        return torch.as_tensor(found, dtype=sigma.dtype, device=sigma.device).square() / 2

    def log_prob(self, utility_chosen: Tensor, utility_rejected: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`log Phi((u_c - u_r) / s(sigma))`.

        Args:
            utility_chosen: `[b]`.
            utility_rejected: `[b]`.
            sigma: noise level `[b]`.

        Returns:
            `[b]`, at most 0.

        Raises:
            ShapeError: the three do not have one shape, or sigma is missing.
        """
        if sigma is None or not utility_chosen.shape == utility_rejected.shape == sigma.shape:
            raise ShapeError("a tabulated law needs utility_chosen, utility_rejected and sigma of one shape [b]")
        return torch.special.log_ndtr((utility_chosen - utility_rejected) / (2 * self.variance(sigma)).sqrt())

    def log_prob_of_mean(
        self, margin: Tensor, sigmas: Sequence[float], weights: Sequence[float] | None = None, draws: int = 1
    ) -> Tensor:
        """`log Phi(margin / s_mean)`."""
        return torch.special.log_ndtr(margin / self.deviation(sigmas, weights, draws))

    def deviation(self, sigmas: Sequence[float], weights: Sequence[float] | None = None, draws: int = 1) -> float:
        """`s_mean` of a margin averaged over levels and draws.

        Args:
            sigmas: the levels.
            weights: of each, adding up to 1; None weighs them equally.
            draws: of noise at every level.

        Returns:
            The divisor that makes the margin a probit.
        """
        levels = np.asarray(sigmas, dtype=np.float64)
        shares = np.full(len(levels), 1 / len(levels)) if weights is None else np.asarray(weights, dtype=np.float64)
        single, settled = (np.interp(levels, self.sigmas, table) for table in (self.single, self.settled))
        parts = shares * (settled + (single - settled) / draws)
        agreement = np.exp(-self.disagreement * np.abs(levels[:, None] - levels))
        return float(parts @ agreement @ parts / parts.sum())
