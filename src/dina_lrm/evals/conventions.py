"""One set of scores under every convention for ties: papers differ in nothing else and call it all accuracy.

A pair is tied in truth when nobody won the vote, and in prediction when both utilities are equal. What either earns, and
whether pairs or prompts are averaged, is what the conventions disagree about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dina_lrm.evals.card import AccuracyEstimate, Card, Value
from dina_lrm.evals.splits import first_half
from dina_lrm.metrics import clustered_mean

__all__ = [
    "CONVENTIONS",
    "Convention",
    "ConventionCard",
    "TieCard",
    "TiedAccuracy",
    "accuracy_by_convention",
    "tie_card",
]


@dataclass(frozen=True)
class Convention:
    """What ties earn.

    Attributes:
        truth: what a pair earns that is tied in truth; NaN leaves it out.
        prediction: the same for one that is tied in prediction only.
        used_by: who counts like this.
    """

    truth: float
    prediction: float
    used_by: str


CONVENTIONS = {
    "ours": Convention(math.nan, 0.5, "this package: vote ties left out, a predicted tie is a coin"),
    "drop": Convention(math.nan, math.nan, "papers that leave out every tie"),
    "half": Convention(0.5, 0.5, "Pick-a-Pic: every tie is a coin"),
    "wrong": Convention(0.0, 0.0, "the authors' release: a tie on either side is never right"),
    "correct": Convention(1.0, 1.0, "HPSv2's evaluation of HPDv2: a tie on either side is right"),
    "decided": Convention(math.nan, 0.0, "ImageReward: vote ties left out, a predicted tie is wrong"),
}


class ConventionCard(Card):
    """Accuracy under one convention.

    Attributes:
        micro: mean over pairs.
        per_prompt: mean over prompts of the mean over their pairs.
    """

    used_by: str
    micro: AccuracyEstimate
    per_prompt: AccuracyEstimate


class TiedAccuracy(Card):
    """Three-way accuracy (a, b or tie) where a tie is predicted below a margin that was chosen on other prompts."""

    accuracy: AccuracyEstimate
    smallest_margin: tuple[Value, ...]


class TieCard(Card):
    """All conventions side by side.

    Attributes:
        vote_ties: share of pairs that nobody won.
        predicted_ties: share of pairs with equal utilities.
        conventions: by name.
        tau_b: mean over prompts of Kendall's tau-b over their pairs: (right - wrong) / sqrt(untied votes * untied margins).
        calibrated_ties: with a tie band fitted on one half of the prompts and judged on the other (Deutsch et al. 2023).
    """

    vote_ties: float
    predicted_ties: float
    conventions: dict[str, ConventionCard]
    tau_b: AccuracyEstimate
    calibrated_ties: TiedAccuracy


def tie_card(margin: Tensor, target: Tensor, prompt: Tensor) -> TieCard:
    """What the same margins are worth under every convention.

    Args:
        margin: utility of chosen less utility of rejected `[m]`.
        target: share of votes for chosen `[m]`.
        prompt: number of each pair's prompt `[m]`.

    Returns:
        Every accuracy with its 95 % bootstrap interval over prompts.
    """
    margin, side = margin.double(), torch.sign(target.double() - 0.5)
    return TieCard(
        vote_ties=float((side == 0).double().mean()),
        predicted_ties=float((margin == 0).double().mean()),
        conventions={name: _convention(margin, side, prompt, rule) for name, rule in CONVENTIONS.items()},
        tau_b=_by_prompt(_tau_b(margin, side, prompt)),
        calibrated_ties=_calibrated_ties(margin, side, prompt),
    )


def accuracy_by_convention(margin: Tensor, side: Tensor, convention: Convention) -> Tensor:
    """What each pair earns `[m]`; NaN where it is left out.

    Args:
        margin: utility of chosen less utility of rejected `[m]`.
        side: 1 where chosen won the vote, -1 where rejected did, 0 where nobody `[m]`.
        convention: what ties earn.
    """
    earned = (1 + torch.sign(margin) * side) / 2
    earned = torch.where(margin == 0, convention.prediction, earned)
    return torch.where(side == 0, convention.truth, earned)


def _convention(margin: Tensor, side: Tensor, prompt: Tensor, convention: Convention) -> ConventionCard:
    earned = accuracy_by_convention(margin, side, convention)
    return ConventionCard(
        used_by=convention.used_by,
        micro=AccuracyEstimate.of(clustered_mean(earned, prompt)),
        per_prompt=_by_prompt(_means(earned, prompt)),
    )


def _by_prompt(values: Tensor) -> AccuracyEstimate:
    return AccuracyEstimate.of(clustered_mean(values, torch.arange(len(values))))


def _sums(values: Tensor, prompt: Tensor) -> Tensor:
    """By prompt `[g]`, NaN counting nothing."""
    return torch.zeros(int(prompt.max()) + 1, dtype=torch.float64).index_add_(0, prompt, values.nan_to_num())


def _means(values: Tensor, prompt: Tensor) -> Tensor:
    """By prompt `[g]`; NaN where nothing counted."""
    return _sums(values, prompt) / _sums((~values.isnan()).double(), prompt)


def _tau_b(margin: Tensor, side: Tensor, prompt: Tensor) -> Tensor:
    agreement = _sums(torch.sign(margin) * side, prompt)
    untied = _sums((side != 0).double(), prompt) * _sums((margin != 0).double(), prompt)
    return agreement / untied.sqrt()


def _calibrated_ties(margin: Tensor, side: Tensor, prompt: Tensor) -> TiedAccuracy:
    first = first_half(prompt)
    right = torch.full_like(margin, math.nan)
    bands = []
    for here in (first, ~first):
        if not here.all() and here.any():
            bands.append(_best_band(margin[~here], side[~here]))
            predicted = torch.where(margin.abs() > bands[-1], torch.sign(margin), 0.0)
            right[here] = (predicted == side)[here].double()
    return TiedAccuracy(accuracy=AccuracyEstimate.of(clustered_mean(right, prompt)), smallest_margin=tuple(bands))


def _best_band(margin: Tensor, side: Tensor) -> float:
    """The margin up to which calling a tie gives most three-way accuracy; below all margins where none does."""
    sizes, order = margin.abs().sort()
    tied = (side == 0).double()[order]
    right = (torch.sign(margin) == side).double()[order] * (1 - tied)
    # With the i smallest margins called ties: ties among those, right orders among the others.
    gained = torch.cat([torch.zeros(1, dtype=torch.float64), tied.cumsum(0)]) + right.sum()
    gained[1:] -= right.cumsum(0)
    # Equal margins are called alike: only after the last of them may the band end.
    ends = torch.cat([torch.tensor([True]), torch.cat([sizes[1:] > sizes[:-1], torch.tensor([True])])])
    best = int(torch.where(ends, gained, -math.inf).argmax())
    return float(sizes[best - 1]) if best else -1.0
