"""Which pairs a training step sees, and the pairs themselves as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from dina_lrm.data.folder import Indices, PairTable, PreferenceData
from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.types import Conditioning, PreferenceBatch, PreferenceGroups


@dataclass(frozen=True)
class PairBatches:
    """The order of training pairs, or of prompts: a function of seed and step, so a resumed run needs but its step.

    The epochs' permutations stand end to end in one endless stream; step k takes the k-th stretch of
    `batch_size * world_size` pairs, and each rank takes its own part of it. Nothing is dropped, all batches have one
    size, and the union over ranks depends only on the product of batch size and world size.

    Attributes:
        num_units: how many pairs or prompts there are.
        batch_size: of them a step on one rank.
        seed: of the permutations.
        rank: of this process.
        world_size: how many processes there are.
    """

    num_units: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _at_least(1, num_units=self.num_units, batch_size=self.batch_size, world_size=self.world_size)
        _at_least(0, seed=self.seed, rank=self.rank)
        if self.rank >= self.world_size:
            raise ValueRangeError(f"rank must be below world_size {self.world_size}, got {self.rank}")

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every pair is seen once, on average: not rounded."""
        return self.num_units / (self.batch_size * self.world_size)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Indices of this rank's pairs at a step, `[batch_size]`; steps count from 0."""
        _at_least(0, step=step)
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        epochs, places = np.divmod(positions, self.num_units)
        parts = [_permutation(self.num_units, self.seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class PromptGroups:
    """The pairs of a table by their prompt.

    Attributes:
        table: pairs of one split.
        places: which pairs each prompt has, one array a prompt, in order of first appearance.
        max_candidates: most candidates of a prompt in one batch; 2 or more.
    """

    table: PairTable
    places: tuple[npt.NDArray[np.int64], ...]
    max_candidates: int

    @staticmethod
    def of(table: PairTable, max_candidates: int) -> PromptGroups:
        """Sort a table's pairs by prompt."""
        _at_least(2, max_candidates=max_candidates)
        by_prompt: dict[str, list[int]] = {}
        for place, prompt in enumerate(table.prompt):
            by_prompt.setdefault(prompt, []).append(place)
        return PromptGroups(table, tuple(np.array(places) for places in by_prompt.values()), max_candidates)

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, group: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Pairs of one group among at most `max_candidates` of its candidates: one pair at least.

        Pairs come in random order and bring their candidates along while there is room; then every pair among those
        that came is taken.
        """
        places = self.places[group]
        rows = np.stack([self.table.chosen_row[places], self.table.rejected_row[places]], axis=1)
        if len(np.unique(rows)) <= self.max_candidates:
            return places
        came: set[int] = set()
        for pair in rng.permutation(rows).tolist():
            if len(came | set(pair)) <= self.max_candidates:
                came |= set(pair)
        return places[np.isin(rows, list(came)).all(axis=1)]


@lru_cache(maxsize=4)
def _permutation(num_pairs: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_pairs)


def unique_prompts(*tables: PairTable) -> list[str]:
    """Each prompt of the tables once, in order of first appearance: what has to be encoded."""
    return list(dict.fromkeys(prompt for table in tables for prompt in table.prompt))


def conditioning_by_prompt(prompts: Iterable[str], conditioning: Conditioning) -> dict[str, Conditioning]:
    """Encoded prompts under their texts.

    Args:
        prompts: `u` texts.
        conditioning: of the same texts, batch `u`.

    Returns:
        One conditioning of batch 1 for each text.

    Raises:
        ShapeError: the counts differ.
    """
    prompts = list(prompts)
    if len(prompts) != len(conditioning):
        raise ShapeError(f"{len(prompts)} prompts need as many conditionings, got {len(conditioning)}")
    return {prompt: conditioning[i : i + 1] for i, prompt in enumerate(prompts)}


def collate(
    data: PreferenceData, table: PairTable, indices: Indices, conditioning_by_prompt: Mapping[str, Conditioning]
) -> PreferenceBatch:
    """Gather pairs as one batch.

    Args:
        data: where the latents lie.
        table: pairs of one split.
        indices: which of them, `[b]`.
        conditioning_by_prompt: one conditioning of batch 1 for each text.

    Returns:
        The batch, float32 on the CPU.

    Raises:
        DataError: a prompt was not encoded.
    """
    pairs = table[indices]
    return PreferenceBatch(
        latents_chosen=data.latents(pairs.chosen_row),
        latents_rejected=data.latents(pairs.rejected_row),
        conditioning=Conditioning.cat([_encoded(conditioning_by_prompt, prompt) for prompt in pairs.prompt]),
        target=torch.from_numpy(pairs.target),
    )


def collate_groups(
    data: PreferenceData,
    groups: PromptGroups,
    indices: Indices,
    conditioning_by_prompt: Mapping[str, Conditioning],
    seed: int,
) -> PreferenceGroups:
    """Gather prompts with their pairs as one batch, each candidate once.

    Args:
        data: where the latents lie.
        groups: pairs of one split by prompt.
        indices: which prompts, `[g]`.
        conditioning_by_prompt: one conditioning of batch 1 for each text.
        seed: of the choice where a prompt has more than `max_candidates`.

    Returns:
        The batch, float32 on the CPU.

    Raises:
        DataError: a prompt was not encoded.
    """
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    group: list[int] = []
    chosen: list[int] = []
    rejected: list[int] = []
    taken: list[int] = []
    prompts: list[str] = []
    for number, index in enumerate(np.asarray(indices).tolist()):
        places = groups.draw(index, rng)
        sides = groups.table.chosen_row[places], groups.table.rejected_row[places]
        candidates = np.unique(np.concatenate(sides))
        for found, side in zip((chosen, rejected), sides, strict=True):
            found += (len(rows) + np.searchsorted(candidates, side)).tolist()
        rows += candidates.tolist()
        group += [number] * len(candidates)
        prompts += [groups.table.prompt[places[0]]] * len(candidates)
        taken += places.tolist()
    return PreferenceGroups(
        latents=data.latents(rows),
        conditioning=Conditioning.cat([_encoded(conditioning_by_prompt, prompt) for prompt in prompts]),
        group=torch.tensor(group),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        target=torch.from_numpy(groups.table.target[taken]),
    )


def _encoded(conditioning_by_prompt: Mapping[str, Conditioning], prompt: str) -> Conditioning:
    if prompt not in conditioning_by_prompt:
        raise DataError(f"prompt {prompt!r} was not encoded; encode unique_prompts(table) first")
    return conditioning_by_prompt[prompt]


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueRangeError(f"{name} must be {least} or more, got {value}")
