"""Votes to a preference folder that training, evaluation and calibration read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dina_lrm.data import Candidate, LatentParts, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.errors import DataError
from dina_lrm.serve.arena.selection import Pair, ordered
from dina_lrm.serve.arena.source import CandidateSource
from dina_lrm.serve.arena.store import Sampling, Vote

Encode = Callable[[Sequence[Image.Image]], Tensor]
SPLITS: dict[Sampling, str] = {"active": "train", "random": "test"}
CHUNK = 16  # candidates whose pictures or latents are in memory at once


def preference_pairs(votes: Iterable[Vote]) -> dict[str, list[PreferencePair]]:
    """Votes added up by pair: those of the prompts that were set apart are "test", the others "train".

    Args:
        votes: skips among them count for nothing.

    Returns:
        Pairs by split, splits without any left out.
    """
    counts: dict[Sampling, dict[Pair, dict[str, int]]] = {"active": {}, "random": {}}
    prompts: dict[Pair, str] = {}
    for vote in votes:
        if vote.choice == "skip":
            continue
        pair = ordered(vote.left, vote.right)
        prompts[pair] = vote.prompt
        chosen = {"left": vote.left, "right": vote.right, "tie": "tie"}[vote.choice]
        found = counts[vote.sampling].setdefault(pair, {pair[0]: 0, pair[1]: 0, "tie": 0})
        found[chosen] += 1
    return {
        SPLITS[sampling]: [_pair(prompts[pair], pair, found) for pair, found in sorted(by_pair.items())]
        for sampling, by_pair in counts.items()
        if by_pair
    }


def _pair(prompt: str, pair: Pair, found: Mapping[str, int]) -> PreferencePair:
    first, second = pair
    chosen, rejected = (first, second) if found[first] >= found[second] else (second, first)
    return PreferencePair(prompt, chosen, rejected, found[chosen], found[rejected], found["tie"])


def export_votes(
    folder: str | Path,
    source: CandidateSource,
    votes: Iterable[Vote],
    voters: int,
    encode: Encode | None,
    backbone: Mapping[str, Any],
) -> PreferenceData:
    """Write the votes and the candidates that they name as a preference folder, a few candidates at a time.

    Args:
        folder: where.
        source: of the candidates.
        votes: all of them; looked at once.
        voters: who gave them.
        encode: pictures to latents `[n c h w]`; not needed where the source has latents.
        backbone: what `encode` stands on.

    Returns:
        The folder, opened.

    Raises:
        DataError: nobody has voted, or the candidates' latents have several shapes.
    """
    pairs = preference_pairs(votes)
    if not pairs:
        raise DataError("nobody has voted yet, so there is nothing to export")
    named = sorted({name for split in pairs.values() for pair in split for name in (pair.chosen, pair.rejected)})
    made_by = source.backbone if source.latents(named[:1]) is not None else backbone
    candidates = (
        Candidate(
            candidate=source.public_name(name),
            prompt=source.prompt_of[name],
            latents_row=row,
            origin=source.origin(name),
            preview=source.preview(name),
            oracle_utility=source.oracle_utility(name),
        )
        for row, name in enumerate(named)
    )
    told = {
        split: [
            replace(one, chosen=source.public_name(one.chosen), rejected=source.public_name(one.rejected))
            for one in found
        ]
        for split, found in pairs.items()
    }
    about = {
        "preferences": "votes of people in the arena of a reward server",
        "source": source.name,
        "splits": "test: pairs at random, of prompts set apart by a seed; train: pairs of the other prompts, picked where "
        "a vote was expected to tell most",
        "voters": voters,
    }
    latents = _latents(source, named, encode)
    return write_preference_data(folder, candidates, latents, told, f"{source.name}-arena", made_by, about)


def _latents(source: CandidateSource, candidates: Sequence[str], encode: Encode | None) -> LatentParts:
    parts = _parts(source, candidates, encode)
    first = next(parts)

    def of_one_shape() -> Iterator[Tensor]:
        for part in chain([first], parts):
            if part.shape[1:] != first.shape[1:]:
                shapes = " and ".join("x".join(map(str, one.shape[1:])) for one in (first, part))
                raise DataError(
                    f"the pictures have latents of several shapes ({shapes}) and a preference folder holds one; export the "
                    "votes as JSON, or cut the pictures to one size"
                )
            yield part

    return LatentParts((len(candidates), *first.shape[1:]), of_one_shape())


def _parts(source: CandidateSource, candidates: Sequence[str], encode: Encode | None) -> Iterator[Tensor]:
    for start in range(0, len(candidates), CHUNK):
        some = candidates[start : start + CHUNK]
        latents = source.latents(some)
        if latents is not None:
            yield latents
            continue
        if encode is None:
            raise DataError(f"{source.name} has pictures and no latents, and no model is at hand to encode them")
        for picture in source.pictures(some):
            yield encode([picture]).cpu()
