"""Distributions over sigma for training. Each is its own configuration: a frozen dataclass with `sample`.

All but `Stratified` push a uniform number through one inverse, `quantile`, so stratification works for every law.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dina_lrm.errors import ValueRangeError


class Levels(ABC):
    """A distribution over noise levels in [0, 1]."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The level below which a share `u` of the mass lies, `[n]` in (0, 1) to `[n]` in [0, 1]."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `[n]` levels on the CPU, float32."""
        return self.quantile(uniform(n, generator)).clamp(0, 1)


def uniform(n: int, generator: torch.Generator) -> Tensor:
    """`[n]` uniform numbers, kept off 0 and 1 so that every inverse stays finite."""
    return torch.rand(n, generator=generator).clamp(1e-6, 1 - 1e-6)


def _require(condition: bool, name: str, value: float, accepted: str) -> None:
    if not condition:
        raise ValueRangeError(f"{name} must be {accepted}, got {value:g}")


@dataclass(frozen=True)
class Uniform(Levels):
    """`sigma ~ U(low, high)`: the paper's law with the whole interval."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _require(
            0 <= self.low < self.high <= 1, "low", self.low, f"in [0, high) with high in (0, 1], here {self.high:g}"
        )

    def quantile(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogitNormal(Levels):
    """`sigmoid(mean + std z)`, z standard normal (Stable Diffusion 3, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _require(self.std > 0, "std", self.std, "above 0")

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Mode(Levels):
    """`1 - u - scale (cos^2(pi u / 2) - 1 + u)` (Stable Diffusion 3, section 3.1)."""

    scale: float = 1.29

    def __post_init__(self) -> None:
        _require(-1 <= self.scale <= 2 / (math.pi - 2), "scale", self.scale, "in [-1, 1.75], where the map is monotone")

    def quantile(self, u: Tensor) -> Tensor:
        # The formula falls in u; mirrored it rises, as a quantile must, and draws from the same distribution.
        u = 1 - u
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


@dataclass(frozen=True)
class Constant(Levels):
    """Always the same level."""

    sigma: float = 0.4

    def __post_init__(self) -> None:
        _require(0 <= self.sigma <= 1, "sigma", self.sigma, "in [0, 1]")

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.sigma)


@dataclass(frozen=True)
class Power(Levels):
    """`u^exponent`: above 1 leans to clean states, below 1 to noisy ones."""

    exponent: float = 2.0

    def __post_init__(self) -> None:
        _require(self.exponent > 0, "exponent", self.exponent, "above 0")

    def quantile(self, u: Tensor) -> Tensor:
        return u.pow(self.exponent)


@dataclass(frozen=True)
class Beta(Levels):
    """`Beta(a, b)` on [0, 1]."""

    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        # Below 0.5 the mass crowds into the ends, finer than the table of `quantile` can tell.
        _require(self.a >= 0.5, "a", self.a, "0.5 or more")
        _require(self.b >= 0.5, "b", self.b, "0.5 or more")

    def quantile(self, u: Tensor) -> Tensor:
        # torch has no inverse of the incomplete beta function: a table of the distribution, read backwards.
        grid = torch.linspace(0, 1, 4097, dtype=torch.float64)
        middle = (grid[1:] + grid[:-1]) / 2
        log_density = (self.a - 1) * middle.log() + (self.b - 1) * (1 - middle).log()
        mass = torch.cat([grid.new_zeros(1), (log_density - log_density.max()).exp().cumsum(0)])
        mass = mass / mass[-1]
        right = torch.searchsorted(mass, u.double()).clamp(1, len(grid) - 1)
        below, above = mass[right - 1], mass[right]
        share = (u - below) / (above - below).clamp_min(1e-12)
        return (grid[right - 1] + share * (grid[right] - grid[right - 1])).float()


@dataclass(frozen=True)
class Stratified(Levels):
    """Another law, one draw in each of `n` slices of equal mass, in random order.

    A batch then covers the law evenly: the same mean gradient with less spread.
    """

    of: Levels = Uniform()

    def quantile(self, u: Tensor) -> Tensor:
        return self.of.quantile(u)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        slices = torch.randperm(n, generator=generator)
        return self.quantile((slices + uniform(n, generator)) / n).clamp(0, 1)
