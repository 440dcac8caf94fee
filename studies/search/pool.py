"""Whole trajectories, every state on the way read by the reward, every finished picture judged by the oracle.

A sampler without noise is deterministic, so pruning is a choice among whole trajectories: sample them once, and any schedule can
be replayed on them (`studies.search.schedules`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dina_lrm.generation import Policy, ode_step, state_at
from dina_lrm.generation.sampler import Field, clean
from dina_lrm.runtime.files import atomic_write
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.selection import Judge, judge_of
from dina_lrm.types import Conditioning
from dina_lrm.worlds.emoji import asked_for, emoji_prompts, emoji_scorer, seed_of

__all__ = ["READINGS", "Emoji", "Pool", "World", "held_out_prompts", "sample_pool"]

READINGS = ("state", "clean")
LENGTH = 1  # the world's T5 is empty


class World(Protocol):
    """What samples, what chooses, and who judges."""

    @property
    def field(self) -> Field:
        """The sampler's velocity."""

    def text(self, prompts: Sequence[str]) -> Conditioning:
        """For the field, one a prompt."""

    def judge(self, prompts: Sequence[str]) -> Judge:
        """The reward."""

    def noise(self, prompts: Sequence[str], number: int) -> Tensor:
        """`[q n c h w]`, the first two axes as one; a prompt's is the same in any company."""

    def grid(self, steps: int) -> Tensor:
        """The sampler's levels."""

    def utility(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the oracle thinks of finished latents, the samples of a prompt behind each other."""


class Emoji:
    """The emoji world's generator, the reward that comes with it, and its oracle."""

    def __init__(self, reward: Path, root: Path) -> None:
        from dina_lrm.backbones.loading import load_pipeline

        pipeline = load_pipeline(str(root / "pipeline"), torch.float32)
        self.policy = Policy(pipeline)
        self.model = RewardModel.from_pretrained(reward, base=pipeline, merge_adapter=True)
        self._scorer: Callable[[Tensor, Sequence[str]], Tensor] = emoji_scorer()

    @property
    def field(self) -> Field:
        """The generator as it is."""
        return self.policy

    def text(self, prompts: Sequence[str]) -> Conditioning:
        """For the generator."""
        return self.policy.backbone.encode_prompts(list(prompts), LENGTH)

    def judge(self, prompts: Sequence[str]) -> Judge:
        """The reward at its default: finished pictures at sigma 0.4."""
        return judge_of(self.model, self.model.encode_prompts(list(prompts), LENGTH))

    def noise(self, prompts: Sequence[str], number: int) -> Tensor:
        """From a seed that is the prompt's own."""
        return torch.cat(
            [torch.randn(number, 16, 8, 8, generator=torch.Generator().manual_seed(seed_of(p))) for p in prompts]
        )

    def grid(self, steps: int) -> Tensor:
        """As the pipeline's scheduler has it."""
        return self.policy.backbone.sampler_sigmas(steps, (16, 8, 8))

    def utility(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Of what half-precision latents decode to."""
        named = [prompt for prompt in prompts for _ in range(len(latents) // len(prompts))]
        pixels = [self.policy.backbone.decode_latents(part.half().float()) for part in latents.split(128)]
        return self._scorer(torch.cat(pixels), named)


def held_out_prompts(split: str, number: int) -> list[str]:
    """Prompts of a split's concepts, each concept once, in one of the styles that it was drawn in."""
    by_concept: dict[str, list[str]] = {}
    for prompt in emoji_prompts(split):
        by_concept.setdefault(asked_for(prompt)[0], []).append(prompt)
    found = [prompts[seed_of("style", concept) % len(prompts)] for concept, prompts in by_concept.items()]
    return sorted(found, key=seed_of)[:number]


@dataclass(frozen=True)
class Pool:
    """Whole trajectories of each prompt `[q n]` and what was read of them.

    Attributes:
        sigmas: levels after each step `[t]`.
        state: reward of each state as it stands `[q n t]`; the last is finished and read as `score` does.
        clean: reward of the clean latents that the step to it predicted `[q n t]`, read as `score` does.
        oracle: utility of the finished ones `[q n]`.
    """

    sigmas: np.ndarray
    state: np.ndarray
    clean: np.ndarray
    oracle: np.ndarray

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        with atomic_write(path) as file:
            np.savez_compressed(file, **asdict(self))

    @staticmethod
    def load(path: Path) -> Pool:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return Pool(*(found[name] for name in ("sigmas", "state", "clean", "oracle")))


@torch.no_grad()
def sample_pool(world: World, prompts: Sequence[str], steps: int, number: int, at_once: int = 8) -> Pool:
    """Sample and read so many trajectories of each prompt.

    Args:
        world: of them.
        prompts: each with a noise of its own.
        steps: of the sampler.
        number: of trajectories a prompt.
        at_once: prompts in a batch.
    """
    grid, started = world.grid(steps), time.monotonic()
    parts: dict[str, list[Tensor]] = {"state": [], "clean": [], "oracle": []}
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        latents, rows = world.noise(some, number), torch.arange(len(some)).repeat_interleave(number)
        text, judge = world.text(some)[rows], world.judge(some)
        read: dict[str, list[Tensor]] = {"state": [], "clean": []}
        for place in range(steps):
            state = state_at(latents, float(grid[place]))
            velocity = world.field(state, text)
            following = ode_step(state, velocity, float(grid[place + 1]))
            latents = following.noised_latents
            read["state"].append(judge(following, rows))
            read["clean"].append(judge(state_at(clean(state, velocity), 0.0), rows))
        for name, values in read.items():
            parts[name].append(torch.stack(values, dim=1).unflatten(0, (len(some), number)))
        parts["oracle"].append(world.utility(latents, some).view(len(some), number))
        print(f"{first + len(some)}/{len(prompts)} prompts, {time.monotonic() - started:.0f} s", flush=True)
    values = {name: torch.cat(found).double().numpy() for name, found in parts.items()}
    return Pool(grid[1:].double().numpy(), **values)
