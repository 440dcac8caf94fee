"""How a reward is asked for during an evaluation: the levels, the draws, how they are joined, and what prompt is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dina_lrm.errors import DataError
from dina_lrm.noise import NoiseEnsemble

__all__ = ["Prompts", "ScoringRule", "deranged", "shown_prompts"]

Prompts = Literal["own", "swapped", "blank"]


@dataclass(frozen=True)
class ScoringRule(NoiseEnsemble):
    """One way to ask a reward model for a score: levels, draws at each, and how they are joined."""

    @property
    def label(self) -> str:
        """Such as `sigma 0.4` or `tokens 0.2, 0.5, 0.7`."""
        levels = ", ".join(f"{s:g}" for s in self.sigmas)
        times = f" × {self.max_draws} draws" if self.max_draws > 1 else ""
        return (f"sigma {levels}" if len(self.sigmas) == 1 else f"{self.fusion} {levels}") + times


def deranged(items: Sequence[str], seed: int) -> list[str]:
    """The items in another order in which none keeps its place: one cycle through a seeded permutation.

    Raises:
        DataError: fewer than two items, of which no other can be given.
    """
    if len(items) < 2:
        raise DataError(f"prompts can be swapped among two or more, got {len(items)}")
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    given = list(items)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        given[here] = items[there]
    return given


def shown_prompts(prompts: Sequence[str], control: Prompts, seed: int) -> dict[str, str]:
    """The prompt that is shown to the model in place of each one.

    Args:
        prompts: those of a split; repeats are welcome.
        control: "own" is itself, "swapped" another prompt of the split, "blank" the empty prompt.
        seed: of the swap.

    Returns:
        Own prompt to shown prompt. All candidates of a prompt are shown the same one, so they stay comparable.
    """
    unique = list(dict.fromkeys(prompts))
    if control == "own":
        return {p: p for p in unique}
    if control == "blank":
        return dict.fromkeys(unique, "")
    return dict(zip(unique, deranged(unique, seed), strict=True))
