"""A split made ready to be scored: every candidate once, and the pairs as places among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dina_lrm.data import PreferenceData
from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.metrics import cluster_index

__all__ = ["SplitView", "first_half"]


@dataclass(frozen=True)
class SplitView:
    """The candidates of a split `[n]`, its pairs `[m]` and its prompts `[g]`.

    Attributes:
        split: its name.
        prompts: the prompts, each once `[g]`.
        candidates: id of each candidate `[n]`.
        rows: row of each candidate's latents `[n]`.
        prompt_of: prompt of each candidate, as a place in `prompts` `[n]`.
        oracle: noise-free utility of each candidate `[n]` float64, NaN where there is none.
        chosen: place of each pair's chosen candidate `[m]`.
        rejected: place of each pair's rejected candidate `[m]`.
        target: share of votes for chosen `[m]`.
        kinds: kind of each pair `[m]`.
    """

    split: str
    prompts: tuple[str, ...]
    candidates: tuple[str, ...]
    rows: Tensor
    prompt_of: Tensor
    oracle: Tensor
    chosen: Tensor
    rejected: Tensor
    target: Tensor
    kinds: tuple[str, ...]

    @staticmethod
    def of(data: PreferenceData, split: str, max_prompts: int | None = None) -> SplitView:
        """Read a split; with `max_prompts`, only the pairs of that many prompts, the first in order of appearance.

        Raises:
            DataError: the split has no pairs.
            ValueRangeError: `max_prompts` below 1.
        """
        if max_prompts is not None and max_prompts < 1:
            raise ValueRangeError(f"max_prompts must be 1 or more, got {max_prompts}")
        table = data.pairs(split)
        prompt_of_pair = cluster_index(table.prompt)
        if not len(prompt_of_pair):
            raise DataError(f"split {split!r} has no pairs; take one of {', '.join(data.splits)}")
        if max_prompts is not None:
            kept = prompt_of_pair < max_prompts
            table, prompt_of_pair = table[kept.nonzero()[:, 0]], prompt_of_pair[kept]
        ids = [*table.chosen, *table.rejected]
        place = {candidate: i for i, candidate in enumerate(dict.fromkeys(ids))}
        places = torch.tensor([place[candidate] for candidate in ids])

        def by_candidate(chosen: object, rejected: object) -> Tensor:
            both = torch.as_tensor(np.concatenate([np.asarray(chosen), np.asarray(rejected)]))
            return torch.empty(len(place), dtype=both.dtype).scatter_(0, places, both)

        return SplitView(
            split=split,
            prompts=tuple(dict.fromkeys(table.prompt)),
            candidates=tuple(place),
            rows=by_candidate(table.chosen_row, table.rejected_row),
            prompt_of=by_candidate(prompt_of_pair, prompt_of_pair),
            oracle=by_candidate(table.chosen_utility, table.rejected_utility),
            chosen=places[: len(table)],
            rejected=places[len(table) :],
            target=torch.from_numpy(table.target).double(),
            kinds=tuple(table.kind),
        )

    @property
    def prompt_of_pair(self) -> Tensor:
        """Prompt of each pair, as a place in `prompts` `[m]`: the clusters of every interval."""
        return self.prompt_of[self.chosen]

    def margin(self, utility: Tensor) -> Tensor:
        """Utility of chosen less utility of rejected `[m]`, from the utility of each candidate `[n]`."""
        return utility[self.chosen] - utility[self.rejected]

    def of_kind(self, kind: str) -> Tensor:
        """Which pairs are of that kind `[m]` bool."""
        return torch.tensor([k == kind for k in self.kinds])

    @property
    def kind_names(self) -> Sequence[str]:
        """The kinds that occur, sorted."""
        return sorted(set(self.kinds))


def first_half(prompt: Tensor) -> Tensor:
    """Which items `[m]` bool belong to one half of the prompts, the same at every call: what is fitted there is judged on the other.

    Args:
        prompt: of each item `[m]`, as numbers from 0.
    """
    order = torch.randperm(int(prompt.max()) + 1, generator=torch.Generator().manual_seed(0))
    return order[prompt] % 2 == 0
