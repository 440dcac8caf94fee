"""Calibration: what held-out votes say of a model's numbers. Utility to reward, and the law of choice that was fitted.

Fitted by `dina_lrm.preference.fit` at a grid of noise levels; between two levels everything is interpolated linearly,
beyond the outermost it stays as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dina_lrm.errors import ConfigError, ValueRangeError
from dina_lrm.preference.likelihoods import Likelihood
from dina_lrm.types import Spread

RewardKind = Literal["affine", "logistic"]


@dataclass(frozen=True)
class CalibrationLevel:
    """What was fitted at one noise level.

    Attributes:
        sigma: the level.
        centre: utility whose reward is 0 (affine) or 1/2 (logistic).
        spread: utility that one unit of reward is worth, or of its logit; above 0.
        margin: how the utility margin of a pair moves over draws; None if it was not measured.
    """

    sigma: float
    centre: float
    spread: float
    margin: Spread | None = None

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueRangeError(f"spread must be above 0 so that the order stays, got {self.spread:g}")


@dataclass(frozen=True)
class Calibration:
    """Utility to reward, increasing, so an order never changes; and the fitted law of choice.

    `reward = scale * utility + shift` (affine), or the sigmoid of that (logistic): by default the identity. Where levels
    were fitted it is `(utility - centre) / spread` with the request's mean centre and mean spread, so that all
    candidates of one request meet one increasing map.

    Attributes:
        scale: above 0; used where no levels were fitted, or none are named.
        shift: in reward units, or logits.
        kind: "affine" has mean 0 and standard deviation 1 over the reference candidates; "logistic" is the probability of
            being preferred to one of them.
        levels: what was fitted, by ascending sigma.
        choice: the law that held-out votes were fitted by; None keeps the model's own.
    """

    scale: float = 1.0
    shift: float = 0.0
    kind: RewardKind = "affine"
    levels: tuple[CalibrationLevel, ...] = ()
    choice: Likelihood | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueRangeError(f"calibration scale must be above 0 so that the order stays, got {self.scale:g}")
        if self.kind not in get_args(RewardKind):
            raise ConfigError(f"calibration kind must be one of {', '.join(get_args(RewardKind))}, got {self.kind!r}")
        grid = [level.sigma for level in self.levels]
        if grid != sorted(set(grid)):
            raise ValueRangeError(f"calibration levels must stand by ascending sigma, each once, got {grid}")

    def __call__(
        self, utility: Tensor, sigmas: Sequence[float] | None = None, weights: Sequence[float] | None = None
    ) -> Tensor:
        """Utility to reward.

        Args:
            utility: any shape; of one request.
            sigmas: the levels that the request looked at; None for no level in particular.
            weights: of each level in the utility, adding up to 1; None weighs them equally.

        Returns:
            Reward, same shape.
        """
        scale, shift = self.scale, self.shift
        if self.levels and sigmas:
            shares = weights or [1 / len(sigmas)] * len(sigmas)
            spread = sum(w * self._at(s, lambda level: level.spread) for s, w in zip(sigmas, shares, strict=True))
            centre = sum(w * self._at(s, lambda level: level.centre) for s, w in zip(sigmas, shares, strict=True))
            scale, shift = 1 / spread, -centre / spread
        reward = scale * utility + shift
        return torch.sigmoid(reward) if self.kind == "logistic" else reward

    def law(self, likelihood: Likelihood) -> Likelihood:
        """The law of choice to turn utilities into probabilities by.

        Args:
            likelihood: that the model was trained under.

        Returns:
            The fitted law, or the model's own without its margin where none was fitted.
        """
        return self.choice if self.choice is not None else likelihood.choice()

    def margin_spread(self, sigma: float) -> Spread | None:
        """How a pair's utility margin moves from draw to draw at a level; None where that was not measured."""
        if not self.levels or any(level.margin is None for level in self.levels):
            return None
        variance = self._at(sigma, lambda level: level.margin.variance if level.margin else math.nan)
        # Degrees of freedom may be infinite; their inverses interpolate.
        inverse = self._at(sigma, lambda level: 1 / level.margin.dof if level.margin else math.nan)
        return Spread(variance, 1 / inverse if inverse else math.inf)

    def _at(self, sigma: float, value: Callable[[CalibrationLevel], float]) -> float:
        """A level's value at `sigma`, interpolated between its neighbours."""
        return float(np.interp(sigma, [level.sigma for level in self.levels], [value(level) for level in self.levels]))
