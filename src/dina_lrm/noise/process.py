"""Forward processes: how noise enters latents. Inside the house everything speaks `sigma` in 0..1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from dina_lrm.errors import ShapeError
from dina_lrm.types import NoisedState, check_finite, check_sigma


def expand_sigma(sigma: Tensor, like: Tensor) -> Tensor:
    """`[b]` to `[b 1 1 1]`, so that it multiplies latents of any rank."""
    return sigma.view(-1, *[1] * (like.ndim - 1))


class ForwardProcess(ABC):
    """The rule from clean latents to a noised state, `alpha(sigma) * latents + sigma * noise`."""

    @abstractmethod
    def alpha(self, sigma: Tensor) -> Tensor:
        """Amplitude that the latents keep at noise amplitude `sigma`, both `[b]` in 0..1."""

    def add_noise(self, latents: Tensor, noise: Tensor, sigma: Tensor) -> NoisedState:
        """Noise clean latents (paper, equation 1).

        Args:
            latents: clean latents `[b c h w]`.
            noise: standard normal `[b c h w]`.
            sigma: noise level `[b]` in 0..1.

        Returns:
            `alpha(sigma) * latents + sigma * noise` with its sigma.

        Raises:
            ShapeError: latents, noise and sigma do not fit together.
            ValueRangeError: sigma outside [0, 1], or latents not finite.
        """
        if latents.shape != noise.shape:
            raise ShapeError(f"noise must have the shape of latents {list(latents.shape)}, got {list(noise.shape)}")
        if sigma.shape != latents.shape[:1]:
            raise ShapeError(f"sigma must be [{len(latents)}], one level a sample, got {list(sigma.shape)}")
        check_sigma(sigma)
        check_finite("latents", latents)
        s = expand_sigma(sigma.to(latents.dtype), latents)
        return NoisedState(self.alpha(s) * latents + s * noise, sigma)


@dataclass(frozen=True)
class RectifiedFlow(ForwardProcess):
    """`x_sigma = (1 - sigma) x_0 + sigma noise` (Liu et al. 2022; SD3, FLUX)."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 - sigma


@dataclass(frozen=True)
class VariancePreserving(ForwardProcess):
    """`x_sigma = sqrt(1 - sigma^2) x_0 + sigma noise` (Ho et al. 2020; SD 1.5, SDXL)."""

    def alpha(self, sigma: Tensor) -> Tensor:
        return (1 - sigma.square()).sqrt()
