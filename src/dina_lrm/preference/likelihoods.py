"""Laws of choice: two utilities to the log-probability that the first is preferred."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError


class Likelihood(ABC):
    """A law of choice between two candidates seen at one noise level."""

    @abstractmethod
    def log_prob(self, utility_chosen: Tensor, utility_rejected: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Log-probability `[b]` that chosen is preferred to rejected."""

    def choice(self) -> Likelihood:
        """The law without what only training asks for: its two orders add up to 1."""
        return self

    def log_prob_of_mean(
        self, margin: Tensor, sigmas: Sequence[float], weights: Sequence[float] | None = None, draws: int = 1
    ) -> Tensor:
        """Log-probability that a is preferred to b, from a utility margin averaged over noise levels and draws.

        A law that was set, not fitted, knows nothing of averages: the mean is given the mean variance of its levels,
        which for `var(sigma) = k sigma^2 + c` is the law at their root mean square. That is too humble wherever
        averaging helped; `TabulatedThurstone` is fitted to say how much.

        Args:
            margin: weighted mean utility of a less that of b, any shape.
            sigmas: the levels.
            weights: of each level, adding up to 1; None weighs them equally.
            draws: of noise at every level.

        Returns:
            Of the margin's shape, at most 0.
        """
        shares = weights or [1 / len(sigmas)] * len(sigmas)
        level = math.sqrt(sum(w * s * s for w, s in zip(shares, sigmas, strict=True)))
        return self.log_prob(margin, torch.zeros_like(margin), torch.full_like(margin, level))

    @abstractmethod
    def variance(self, sigma: Tensor) -> Tensor:
        """Variance of one candidate's perceived worth at `sigma`, same shape."""


@dataclass(frozen=True)
class Thurstone(Likelihood):
    """Thurstone's case V with a noise-calibrated variance (paper, equations 2 to 4).

    `P(a > b) = Phi((u_a - u_b) / sqrt(2 var(sigma)))` with `var(sigma) = scale sigma^2 + min_variance` an image.
    `scale=0, min_variance=0.5` is the law with a fixed variance.

    Attributes:
        scale: k, growth of the variance with the squared noise level.
        min_variance: variance of a clean image; above 0.
    """

    scale: float = 2.0
    min_variance: float = 0.05

    def __post_init__(self) -> None:
        if self.scale < 0 or self.min_variance <= 0:
            raise ValueRangeError(
                f"Thurstone needs scale of 0 or more and min_variance above 0, got {self.scale:g} and {self.min_variance:g}"
            )

    def variance(self, sigma: Tensor) -> Tensor:
        """`scale sigma^2 + min_variance` (paper, equation 3)."""
        return self.scale * sigma.square() + self.min_variance

    def log_prob(self, utility_chosen: Tensor, utility_rejected: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`log Phi((u_c - u_r) / sqrt(2 var(sigma)))`.

        `log_ndtr` and not `log(cdf)`: in float32 the cdf is 0 at -5.7 and the most wrong pairs would lose their gradient.

        Args:
            utility_chosen: `[b]`.
            utility_rejected: `[b]`.
            sigma: shared noise level `[b]`; may be None for the fixed-variance law.

        Returns:
            `[b]`, at most 0.

        Raises:
            ShapeError: the three do not have one shape, or sigma is missing where the variance depends on it.
        """
        if sigma is None:
            if self.scale != 0:
                raise ShapeError(
                    "Thurstone with scale above 0 needs sigma [b]: its variance depends on the noise level"
                )
            sigma = torch.zeros_like(utility_chosen)
        _same_shape(utility_chosen, utility_rejected, sigma)
        return torch.special.log_ndtr((utility_chosen - utility_rejected) / (2 * self.variance(sigma)).sqrt())


@dataclass(frozen=True)
class BradleyTerry(Likelihood):
    """`P(a > b) = sigmoid(u_a - u_b - margin)` (Bradley & Terry 1952; the margin as in RankNet-style losses).

    Attributes:
        margin: what the chosen utility must lead by; 0 is the plain law. With a margin it is no longer a probability of
            choice: the two orders add up to less than 1.
    """

    margin: float = 0.0

    def choice(self) -> Likelihood:
        """The law without its margin."""
        return BradleyTerry()

    def variance(self, sigma: Tensor) -> Tensor:
        """Of one logistic-law candidate: half of `pi^2 / 3`, whatever the noise."""
        return torch.full_like(sigma, torch.pi**2 / 6)

    def log_prob(self, utility_chosen: Tensor, utility_rejected: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`log sigmoid(u_c - u_r - margin)`.

        Args:
            utility_chosen: `[b]`.
            utility_rejected: `[b]`.
            sigma: ignored; taken so that every law is called alike.

        Returns:
            `[b]`, at most 0.

        Raises:
            ShapeError: the utilities differ in shape.
        """
        _same_shape(utility_chosen, utility_rejected)
        return F.logsigmoid(utility_chosen - utility_rejected - self.margin)


def _same_shape(*tensors: Tensor) -> None:
    shapes = [list(t.shape) for t in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"utility_chosen, utility_rejected and sigma must have one shape [b], got {shapes}")
