"""What is known of a generator after so many updates: every number that a monitor looks at, a sample at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Measurement"]


@dataclass(frozen=True)
class Measurement:
    """Held-out samples of a policy, measured; the same prompts and noise each time, so that differences are paired.

    Attributes:
        step: updates behind it; 0 is the generator as it was.
        group_size: samples of one prompt stand behind each other, so many of each.
        rewards: of what is learned from, by name `[n]`; NaN where there is none.
        judges: of what nothing is learned from, by name `[n]`.
        spreads: of latent rewards, by name: standard deviation of a sample's utility over draws `[n]`.
        profiles: of latent rewards, by name: reward at each of `sigmas` `[n k]`.
        sigmas: the levels of profiles.
        grid: how much of a regular pattern a picture has `[n]` (`measures.grid_score`).
        norm: root mean square of the latents `[n]`.
        diversity: mean distance between samples of one prompt `[q]`; empty with one a prompt.
        distance: mean squared difference of velocities to those of the generator as it was `[n]`.
    """

    step: int
    group_size: int
    rewards: Mapping[str, Tensor]
    judges: Mapping[str, Tensor]
    grid: Tensor
    norm: Tensor
    diversity: Tensor
    distance: Tensor
    spreads: Mapping[str, Tensor] = field(default_factory=dict)
    profiles: Mapping[str, Tensor] = field(default_factory=dict)
    sigmas: tuple[float, ...] = ()
