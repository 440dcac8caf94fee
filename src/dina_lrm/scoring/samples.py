"""Samples of a request that travel: cut into requests of a bounded size, their answers put together again.

A score depends on nothing but its own sample, so cutting changes no number. Rankings and comparisons are never cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dina_lrm.types import Reward

MOST_STATES = 256  # half of what a server's queue holds unless told otherwise
MOST_BYTES = 32 * 2**20  # half of what a server takes unless told otherwise


@dataclass(frozen=True)
class Samples:
    """Candidates with their prompts and seeds.

    Attributes:
        tensors: one row a sample.
        files: of pictures, one a sample; empty where tensors are the candidates.
        text: encoded prompts, one row a sample or one for all.
        prompts: in words, one a sample or one for all; empty where text says it.
        seed: one for all, or one a sample.
    """

    tensors: Mapping[str, Tensor]
    files: Sequence[Tensor]
    text: Mapping[str, Tensor]
    prompts: tuple[str, ...]
    seed: int | tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files) or max(len(tensor) for tensor in self.tensors.values())

    def __getitem__(self, part: slice) -> Samples:
        """Some of them; what stands for all stands for these."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor if len(tensor) == 1 else tensor[part]

        return replace(
            self,
            tensors={name: rows(tensor) for name, tensor in self.tensors.items()},
            files=self.files[part],
            text={name: rows(tensor) for name, tensor in self.text.items()},
            prompts=self.prompts if len(self.prompts) <= 1 else self.prompts[part],
            seed=self.seed if isinstance(self.seed, int) else self.seed[part],
        )

    @property
    def blob(self) -> dict[str, Tensor]:
        """All tensors by the names they travel under."""
        pictures = {f"image.{place}": file for place, file in enumerate(self.files)}
        return {**self.tensors, **pictures, **self.text}

    def parts(self, states_each: int = 1) -> list[Samples]:
        """The same in requests of at most `MOST_STATES` states and about `MOST_BYTES`.

        What does not fit together stays in one: the server says why it is wrong.

        Args:
            states_each: levels x draws of a sample.
        """
        count = len(self)
        total = sum(tensor.nbytes for tensor in self.blob.values())
        at_once = max(1, min(MOST_STATES // states_each, int(MOST_BYTES / max(1, total / count))))
        if at_once >= count or not self._fits_together():
            return [self]
        return [self[start : start + at_once] for start in range(0, count, at_once)]

    def _fits_together(self) -> bool:
        count = len(self)
        ones_too = [len(self.prompts) or 1, *(len(tensor) for tensor in self.text.values())]
        of_each = [len(tensor) for tensor in self.tensors.values()]
        seeds = count if isinstance(self.seed, int) else len(self.seed)
        return all(given in (1, count) for given in ones_too) and all(given == count for given in (*of_each, seeds))


def joined(answers: Sequence[Reward]) -> Reward:
    """Rewards of the parts as one, in order.

    Args:
        answers: one a part, all with draws at the same levels.

    Returns:
        The whole; where parts were drawn unequally often, NaN stands for what was not drawn.
    """
    if len(answers) == 1:
        return answers[0]
    longest = max(answers, key=lambda one: one.draws.shape[1])
    columns = longest.draws.shape[1]
    drawn = [torch.nn.functional.pad(one.draws, (0, columns - one.draws.shape[1]), value=math.nan) for one in answers]
    seeds = [one.seed for one in answers]
    several = tuple(seed for told in seeds if isinstance(told, tuple) for seed in told)
    return Reward(
        reward=torch.cat([one.reward for one in answers]),
        utility=torch.cat([one.utility for one in answers]),
        utility_std=torch.cat([one.utility_std for one in answers]),
        standard_error=torch.cat([one.standard_error for one in answers]),
        draws=torch.cat(drawn),
        sigmas=longest.sigmas,
        seed=several or seeds[0],
        spent=torch.cat([one.spent for one in answers]),
    )


def joined_states(answers: Sequence[Reward]) -> Reward:
    """Rewards of noised states as one: `sigmas` names the one level of all, or each sample's."""
    whole = joined(answers)
    each = torch.cat([one.sigmas.expand(len(one)) for one in answers])
    return replace(whole, sigmas=each[:1] if bool((each == each[0]).all()) else each)
