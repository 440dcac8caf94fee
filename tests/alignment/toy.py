"""A generator and a reward small enough to be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dina_lrm.alignment.algorithms import Actors, Judged, PromptBatch
from dina_lrm.noise.process import expand_sigma
from dina_lrm.types import Conditioning, NoisedState

GRID = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
SHAPE = (2, 3, 3)


class Toy(nn.Module):
    """`v = tanh(a x + b s) + c`, with what is added to a, b and c as its adapter; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
        self.adapter = nn.Parameter(torch.tensor([0.05, 0.02, -0.03], dtype=torch.float64))
        self.on = True

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        a, b, c = self.base + self.adapter if self.on else self.base
        return torch.tanh(a * state.noised_latents + b * expand_sigma(state.sigma.double(), state.noised_latents)) + c

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def reward(latents: Tensor, batch: PromptBatch) -> Judged:
    """The mean of a picture, bent a little, so that gradients differ from place to place."""
    worth = (latents - 0.3 * latents.square()).flatten(1).mean(dim=1)
    return Judged(worth, torch.ones(len(latents), dtype=torch.bool))


def batch(prompts: int = 2, group_size: int = 3, seed: int = 0) -> PromptBatch:
    count = prompts * group_size
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    words = tuple(f"prompt {place}" for place in range(prompts) for _ in range(group_size))
    return PromptBatch(words, Conditioning(torch.zeros(count, 1, 1)), group_size, noise)


def actors(toy: Toy, reward=reward, guidance: float = 1.0) -> Actors:
    return Actors(
        policy=toy,
        reference=toy.reference,
        reward=reward,
        reward_of_state=lambda state, batch: reward(state.noised_latents, batch),
        sigmas=GRID,
        negative=Conditioning(torch.zeros(1, 1, 1)),
        guidance=guidance,
        parameters={"adapter": toy.adapter},
    )
