"""Which pair to show next.

Some prompts, drawn by the seed and no model, are set apart: their pairs are shown at random, and agreement with the model is
counted on them alone. The pairs of all other prompts are chosen where a vote tells most.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from dina_lrm.serve.arena.store import Vote

Pair = tuple[str, str]  # candidates of one prompt, in the order of the source


def set_apart(prompts: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """Prompts whose pairs are shown at random: each by a hash of seed and prompt, so that adding prompts moves no other.

    Args:
        prompts: all of them.
        share: how many to set apart, about; 1 takes all.
        seed: another one sets others apart.

    Returns:
        They; one at least.
    """

    def draw(prompt: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:7], "big") / 2**56

    return frozenset(prompt for prompt in prompts if draw(prompt) < share) or frozenset([min(prompts, key=draw)])


def expected_information(probability: Tensor, first: Tensor, second: Tensor, prior_votes: float) -> Tensor:
    """What one more vote is expected to tell of the share of voters who prefer the first of a pair, in nats.

    The share has a Beta law: the model's opinion counts as `prior_votes` votes, and the votes so far are added; a tie
    is half a vote for each. With `a = prior_votes p + first` and `b = prior_votes (1 - p) + second`, the mutual
    information between the next vote and the share is (Houlsby et al. 2011)

        H(a / (a + b)) - E[H(share)],
        E[H(share)] = psi(a + b + 1) - (a psi(a + 1) + b psi(b + 1)) / (a + b),

    H the entropy of a choice. It is largest where the model is unsure (p near 1/2) and falls with every vote.

    Args:
        probability: that the first is preferred, by the model `[n]`.
        first: votes for the first so far `[n]`.
        second: votes for the second so far `[n]`.
        prior_votes: votes that the model's opinion is worth.

    Returns:
        `[n]`, 0 or more.
    """
    # An opinion of exactly 0 or 1 would never be asked about again.
    opinion = probability.double().clamp(0.01, 0.99)
    a, b = prior_votes * opinion + first, prior_votes * (1 - opinion) + second
    total = a + b
    mean = a / total
    entropy = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean))
    expected = torch.digamma(total + 1) - (a * torch.digamma(a + 1) + b * torch.digamma(b + 1)) / total
    return (entropy - expected).clamp(min=0)


def tally(votes: Iterable[Vote]) -> dict[Pair, tuple[float, float]]:
    """Votes for the first and for the second of each pair (in the order of their ids), ties as halves, skips as nothing."""
    found: dict[Pair, tuple[float, float]] = {}
    for vote in votes:
        pair = ordered(vote.left, vote.right)
        first, second = found.get(pair, (0.0, 0.0))
        if vote.choice == "tie":
            found[pair] = first + 0.5, second + 0.5
        elif vote.choice != "skip":
            chosen = vote.left if vote.choice == "left" else vote.right
            found[pair] = (first + 1, second) if chosen == pair[0] else (first, second + 1)
    return found


def ordered(one: str, other: str) -> Pair:
    """A pair of candidates whichever way round it was shown."""
    return (one, other) if one < other else (other, one)


def pairs_of(candidates: Sequence[str]) -> list[Pair]:
    """Every pair of one prompt's candidates."""
    return [ordered(one, other) for one, other in combinations(candidates, 2)]


def random_pair(
    by_prompt: Mapping[str, Sequence[str]], prompts: Sequence[str], seen: set[Pair], rng: random.Random
) -> Pair | None:
    """A prompt at random, then one of its pairs at random, among those not seen; None if all are.

    Args:
        by_prompt: candidates of each prompt.
        prompts: to draw from.
        seen: pairs that are not to be shown again.
        rng: of the draw.
    """
    for prompt in rng.sample(prompts, len(prompts)):
        left = [pair for pair in pairs_of(by_prompt[prompt]) if pair not in seen]
        if left:
            return rng.choice(left)
    return None
