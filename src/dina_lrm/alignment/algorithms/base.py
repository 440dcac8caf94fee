"""What algorithms share: who acts in an update, what a batch of prompts is, what an update gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dina_lrm.errors import ConfigError, ShapeError
from dina_lrm.generation.sampler import Field, Guided, exact
from dina_lrm.types import Conditioning, NoisedState

__all__ = [
    "Actors",
    "Algorithm",
    "Judged",
    "PromptBatch",
    "Step",
    "best_and_worst",
    "group_advantages",
    "mean_over",
    "pulled",
    "squared_error",
]


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of an update; samples of one prompt stand behind each other.

    Attributes:
        prompts: in words, one a sample.
        conditioning: encoded for the generator, one a sample.
        group_size: samples a prompt.
        noise: where the rollouts begin `[b c h w]`.
    """

    prompts: tuple[str, ...]
    conditioning: Conditioning
    group_size: int
    noise: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, samples: Tensor) -> PromptBatch:
        return PromptBatch(
            tuple(self.prompts[place] for place in samples.tolist()),
            self.conditioning[samples.to(self.noise.device)],
            self.group_size,
            self.noise[samples],
        )


@dataclass(frozen=True)
class Judged:
    """Rewards of samples; one that failed is no reward of zero.

    Attributes:
        reward: `[b]`; what stands where `valid` is false means nothing.
        valid: `[b]`, whether there is a reward.
    """

    reward: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        if self.reward.shape != self.valid.shape or self.reward.ndim != 1:
            raise ShapeError(
                f"reward and valid must both be [b], got {list(self.reward.shape)}, {list(self.valid.shape)}"
            )


@dataclass(frozen=True)
class Step:
    """What the loop is to learn from now.

    Attributes:
        loss: its gradient is added to what is there.
        ends: whether the optimiser steps after it.
        figures: to be written down, scalars.
    """

    loss: Tensor
    ends: bool = True
    figures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Actors:
    """Who acts in an update.

    Attributes:
        policy: the generator that learns; a call with gradients on trains it.
        reference: inside it, the policy is the generator that it began as.
        reward: latents `[b c h w]` and their batch to rewards; gradients pass where the reward lets them.
        reward_of_state: the same for noised states, as they stand; None where the reward cannot.
        sigmas: the grid of the rollouts `[t + 1]`.
        negative: encoded empty prompt, of one.
        guidance: scale in rollouts; 1 is none.
        parameters: what the policy learns, by name.
        real: so many real latents `[n c h w]` with their conditioning, drawn by a CPU generator; None where there are none.
        agreed: of a number on which hangs how often the policy is asked each process brings its own and all get the first's: where
            they hold one network together they must ask equally often.
        steps_again: whether a whole step may be computed again for its gradient. Not where processes hold the network together: what
            blocks gather inside a backward pass they keep to its end; blocks compute themselves again there.
    """

    policy: Field
    reference: Callable[[], AbstractContextManager[None]]
    reward: Callable[[Tensor, PromptBatch], Judged]
    reward_of_state: Callable[[NoisedState, PromptBatch], Judged] | None
    sigmas: Tensor
    negative: Conditioning
    guidance: float
    parameters: Mapping[str, nn.Parameter]
    real: Callable[[int, torch.Generator], tuple[Tensor, Conditioning]] | None = None
    agreed: Callable[[int], int] = int
    steps_again: bool = True

    @property
    def guided(self) -> Guided:
        """The policy as rollouts ask it."""
        return Guided(self.policy, self.negative, self.guidance)

    def velocity_of_reference(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """What the generator said before it learned, without gradient."""
        with torch.no_grad(), self.reference():
            return self.policy(state, conditioning)


class Algorithm(ABC):
    """A paper's algorithm. It shares rollouts, the loop and the reward with the others, and nothing else.

    Attributes:
        group_size: samples a prompt.
        needs_gradient: whether the reward's gradient is climbed, so that it must have one.
        reads_states: whether noised states are judged as they stand.
    """

    group_size: int = 1
    needs_gradient: ClassVar[bool] = False
    reads_states: ClassVar[bool] = False

    @abstractmethod
    def update(self, actors: Actors, batch: PromptBatch, generator: torch.Generator) -> Iterator[Step]:
        """Learn from one batch of prompts.

        Args:
            actors: who acts.
            batch: prompts and where their rollouts begin.
            generator: of whatever is random, on the CPU.

        Yields:
            Losses; the optimiser has stepped when it is asked for more.
        """

    def finish(self, actors: Actors) -> None:  # noqa: B027  most have nothing to do
        """An update is over: called once, however many micro batches it had."""

    @abstractmethod
    def strengthen(self, factor: float) -> None:
        """Multiply the pull towards the reference.

        Raises:
            ConfigError: there is none.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What it must remember from update to update."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        assert not state, f"{type(self).__name__} remembers nothing"


def pulled(name: str, pull: float, factor: float) -> float:
    """A pull towards the reference, strengthened.

    Raises:
        ConfigError: there is none to strengthen.
    """
    if not pull:
        raise ConfigError(
            f"algorithm.{name} is 0, so there is no pull towards the reference to strengthen; give one above 0"
        )
    return pull * factor


def mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid values; 0, with a gradient of 0, where none is."""
    return values[valid].sum() / valid.sum().clamp_min(1)


def squared_error(left: Tensor, right: Tensor) -> Tensor:
    """Mean squared difference of each sample, `[b]`."""
    return (exact(left) - exact(right)).square().flatten(1).mean(dim=1)


def group_advantages(judged: Judged, group_size: int, spread: str = "group", limit: float = 5.0) -> Tensor:
    """How much better than its group each sample is: `(r - mean of the prompt) / (std + 1e-4)`, clipped (Flow-GRPO).

    Args:
        judged: `[q k]` flattened; samples without a reward have no part in any mean and get 0.
        group_size: k.
        spread: "group" takes each prompt's own standard deviation, "batch" that of all samples given: of one micro batch.
        limit: of the size of an advantage.

    Returns:
        `[b]`, without gradient.
    """
    reward, valid = judged.reward.detach().float().view(-1, group_size), judged.valid.view(-1, group_size)
    count = valid.sum(dim=1, keepdim=True).clamp_min(1)
    reward = torch.where(valid, reward, 0.0)
    centred = torch.where(valid, reward - reward.sum(dim=1, keepdim=True) / count, 0.0)
    if spread == "group":
        std = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    else:
        every = reward[valid]
        std = every.std(correction=0) if len(every) else torch.zeros(())
    return (centred / (std + 1e-4)).clamp(-limit, limit).flatten()


def best_and_worst(judged: Judged, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the best and the worst sample of each group, and how far they lie apart.

    Args:
        judged: `[q k]` flattened; samples without a reward are neither.
        group_size: k.

    Returns:
        Places `[q]` and `[q]`, and the gap `[q]`: NaN where fewer than two samples have a reward.
    """
    reward, valid = judged.reward.detach().float().view(-1, group_size), judged.valid.view(-1, group_size)
    top = torch.where(valid, reward, -torch.inf)
    low = torch.where(valid, reward, torch.inf)
    first = torch.arange(len(reward), device=reward.device) * group_size
    gap = torch.where(valid.sum(dim=1) > 1, top.amax(dim=1) - low.amin(dim=1), torch.nan)
    return first + top.argmax(dim=1), first + low.argmin(dim=1), gap
