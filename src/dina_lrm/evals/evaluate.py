"""Measure a reward model on the held-out pairs of a preference folder.

Each candidate is scored once and the pairs are read off, so a split with 20 pairs a prompt costs no more than its
pictures do. Candidates of one prompt meet the same noise; each prompt has noise of its own, so that intervals over
prompts also carry the luck of the draw.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dina_lrm.data import PreferenceData
from dina_lrm.errors import ShapeError
from dina_lrm.evals.card import AccuracyEstimate, CalibrationCard, EvalCard, ReliabilityBin, SigmaProfile
from dina_lrm.evals.rules import Prompts, ScoringRule, shown_prompts
from dina_lrm.evals.splits import SplitView
from dina_lrm.metrics import (
    brier_score,
    calibration_error,
    calibration_floor,
    clustered_mean,
    kendall_tau_by_group,
    pair_credit,
    reliability,
    soft_nll,
)
from dina_lrm.preference import Likelihood
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.summary import Levels
from dina_lrm.types import Conditioning

__all__ = [
    "ScoredSplit",
    "accuracy_gap",
    "encode_shown",
    "evaluate",
    "make_card",
    "prompt_seed",
    "score_split",
    "score_views",
    "sigma_profile",
]

_CHUNK = 256  # candidates whose latents and conditioning are in memory at once
_PROMPT_CHUNK = 64


@dataclass(frozen=True)
class ScoredSplit:
    """A split and what a model said about its candidates.

    Attributes:
        view: the split.
        rule: how the scores were asked for.
        prompts_shown: which prompts the model saw.
        seed: of the noise and of the swap.
        utility: of each candidate `[n]` float64.
        reward: the same, calibrated `[n]` float64.
        law: of choice, by which the model turns margins into probabilities: the fitted one, if there is one.
        seconds: what the scoring took.
    """

    view: SplitView
    rule: ScoringRule
    prompts_shown: Prompts
    seed: int
    utility: Tensor
    reward: Tensor
    law: Likelihood
    seconds: float

    @property
    def margin(self) -> Tensor:
        """Utility of chosen less utility of rejected `[m]`."""
        return self.view.margin(self.utility)


def score_split(
    model: RewardModel,
    data: PreferenceData,
    split: str | SplitView,
    rule: ScoringRule,
    prompts: Prompts = "own",
    seed: int = 0,
    max_batch_size: int = 64,
    max_prompts: int | None = None,
) -> ScoredSplit:
    """Score every candidate of a split once.

    Args:
        model: the reward model.
        data: the preference folder.
        split: name of a split, or one that was read already.
        rule: levels, draws and fusion.
        prompts: "own", "swapped" (each prompt's candidates are shown another prompt of the split) or "blank".
        seed: of the swap, and with the words of each prompt of its noise.
        max_batch_size: noised pictures in one forward.
        max_prompts: score only so many prompts of a split given by name.

    Returns:
        Utilities by candidate.
    """
    view = split if isinstance(split, SplitView) else SplitView.of(data, split, max_prompts)
    return score_views(model, data, [view], rule, prompts, seed, max_batch_size)[0]


@torch.no_grad()
def score_views(
    model: RewardModel,
    data: PreferenceData,
    views: Sequence[SplitView],
    rule: ScoringRule,
    prompts: Prompts = "own",
    seed: int = 0,
    max_batch_size: int = 64,
) -> list[ScoredSplit]:
    """Score several splits; a candidate that some share is scored once. Arguments as `score_split`."""
    start = time.perf_counter()
    place: dict[tuple[int, str, str], int] = {}
    places = []
    for view in views:
        shown = shown_prompts(view.prompts, prompts, seed)
        own = [view.prompts[i] for i in view.prompt_of.tolist()]
        asked = [(row, prompt, shown[prompt]) for row, prompt in zip(view.rows.tolist(), own, strict=True)]
        places.append(torch.tensor([place.setdefault(one, len(place)) for one in asked]))
    answer = _score(model, data, list(place), rule, seed, max_batch_size)
    seconds = (time.perf_counter() - start) / len(place)
    law = model.calibration.law(model.likelihood)
    return [
        ScoredSplit(view, rule, prompts, seed, answer.utility[own], answer.reward[own], law, seconds * len(own))
        for view, own in zip(views, places, strict=True)
    ]


def prompt_seed(prompt: str, seed: int) -> int:
    """The seed of a prompt's noise: its words and the seed tell it, not the prompts that it stands among."""
    return (zlib.crc32(prompt.encode()) + seed) % 2**31


@dataclass(frozen=True)
class _Answers:
    """Of each candidate that was asked for, `[n]` float64."""

    utility: Tensor
    reward: Tensor


def _score(
    model: RewardModel,
    data: PreferenceData,
    asked: Sequence[tuple[int, str, str]],
    rule: ScoringRule,
    seed: int,
    max_batch_size: int,
) -> _Answers:
    """Score rows of the latents, each with its own prompt, which seeds the noise, and the one that is shown."""
    answers = []
    for first in range(0, len(asked), _CHUNK):
        part = asked[first : first + _CHUNK]
        answer = model.score(
            conditioning=encode_shown(model, [shown for _, _, shown in part]),
            latents=data.latents([row for row, _, _ in part]),
            sigmas=rule.sigmas,
            draws=rule.draws,
            fusion=rule.fusion,
            antithetic=rule.antithetic,
            seed=[prompt_seed(own, seed) for _, own, _ in part],
            max_batch_size=max_batch_size,
        )
        answers.append((answer.utility.cpu().double(), answer.reward.cpu().double()))
    utility, reward = zip(*answers, strict=True)
    return _Answers(torch.cat(utility), torch.cat(reward))


def encode_shown(model: RewardModel, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of a few candidates: all prompts of a large split at once would not fit on the device.

    Args:
        model: whose text encoders are asked, for each text once.
        prompts: of each candidate.
    """
    words = list(dict.fromkeys(prompts))
    place = {word: i for i, word in enumerate(words)}
    parts = [words[i : i + _PROMPT_CHUNK] for i in range(0, len(words), _PROMPT_CHUNK)]
    encoded = Conditioning.cat([model.encode_prompts(part) for part in parts])
    return encoded[torch.tensor([place[prompt] for prompt in prompts])]


def evaluate(
    model: RewardModel,
    data: PreferenceData,
    split: str | SplitView,
    rule: ScoringRule | None = None,
    prompts: Prompts = "own",
    seed: int = 0,
    max_batch_size: int = 64,
    max_prompts: int | None = None,
) -> EvalCard:
    """Score a split and make its card; arguments as `score_split`, by default one draw at sigma 0.4."""
    scored = score_split(model, data, split, rule or ScoringRule(), prompts, seed, max_batch_size, max_prompts)
    return make_card(scored)


def make_card(scored: ScoredSplit, bins: int = 10) -> EvalCard:
    """Everything that one scored split says.

    Args:
        scored: utilities by candidate.
        bins: of the reliability curve.

    Returns:
        Accuracy, agreement with the oracle, and calibration, each with its interval over prompts.
    """
    view, rule = scored.view, scored.rule
    votes = pair_credit(scored.margin, view.target)
    oracle_margin = view.margin(view.oracle)
    return EvalCard(
        split=view.split,
        rule=rule.label,
        sigmas=rule.sigmas,
        draws=rule.max_draws,
        fusion=rule.fusion,
        prompts_shown=scored.prompts_shown,
        seed=scored.seed,
        prompts=len(view.prompts),
        candidates=len(view.rows),
        pairs=len(view.target),
        vote_ties=votes.vote_ties,
        predicted_ties=votes.predicted_ties,
        **_by_kind(view, "accuracy", votes.credit),
        **_by_kind(view, "oracle_accuracy", _oracle_credit(scored.margin, oracle_margin)),
        **_by_kind(view, "ceiling", _known_credit(oracle_margin, view.target)),
        kendall_tau=_kendall_tau(scored),
        calibration=_calibration(scored, bins),
        seconds=scored.seconds,
        candidates_per_second=len(view.rows) / scored.seconds,
    )


def accuracy_gap(here: ScoredSplit, there: ScoredSplit) -> AccuracyEstimate:
    """Accuracy of one scored split less that of another, pair by pair: the interval of the difference itself.

    Raises:
        ShapeError: the two are not the same pairs.
    """
    if here.view.split != there.view.split or len(here.view.target) != len(there.view.target):
        raise ShapeError(
            f"a gap needs the same pairs, got {len(here.view.target)} of {here.view.split!r} "
            f"and {len(there.view.target)} of {there.view.split!r}"
        )
    target = here.view.target
    return _mean(here.view, pair_credit(here.margin, target).credit - pair_credit(there.margin, target).credit)


def sigma_profile(
    model: RewardModel,
    data: PreferenceData,
    split: str | SplitView,
    sigmas: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    seed: int = 0,
    max_batch_size: int = 64,
    max_prompts: int | None = None,
    report: Callable[[float, AccuracyEstimate], None] | None = None,
) -> SigmaProfile:
    """Accuracy of one draw at each level, by kind of pair.

    Args:
        model: the reward model.
        data: the preference folder.
        split: name of a split, or one that was read already.
        sigmas: the levels.
        seed: of the noise, with the words of each prompt.
        max_batch_size: noised pictures in one forward.
        max_prompts: score only so many prompts of a split given by name.
        report: called with each level and its accuracy as it is known.

    Returns:
        A curve for each kind.
    """
    view = split if isinstance(split, SplitView) else SplitView.of(data, split, max_prompts)
    levels: list[dict[str, AccuracyEstimate]] = []
    for sigma in sigmas:
        scored = score_split(model, data, view, ScoringRule((sigma,)), seed=seed, max_batch_size=max_batch_size)
        credit = pair_credit(scored.margin, view.target).credit
        levels.append({"": _mean(view, credit), **_kinds(view, credit)})
        if report is not None:
            report(sigma, levels[-1][""])
    return SigmaProfile(
        split=view.split,
        sigmas=tuple(sigmas),
        all=tuple(level[""] for level in levels),
        by_kind={kind: tuple(level[kind] for level in levels) for kind in view.kind_names},
    )


def _mean(view: SplitView, values: Tensor, where: Tensor | None = None) -> AccuracyEstimate:
    where = torch.ones(len(values), dtype=torch.bool) if where is None else where
    return AccuracyEstimate.of(clustered_mean(values[where], view.prompt_of_pair[where]))


def _kinds(view: SplitView, values: Tensor) -> dict[str, AccuracyEstimate]:
    return {kind: _mean(view, values, view.of_kind(kind)) for kind in view.kind_names}


def _by_kind(view: SplitView, name: str, values: Tensor) -> dict[str, object]:
    return {name: _mean(view, values), f"{name}_by_kind": _kinds(view, values)}


def _known_credit(margin: Tensor, target: Tensor) -> Tensor:
    """Credit where the margin is known; NaN elsewhere."""
    known = ~margin.isnan()
    return torch.where(known, pair_credit(margin.nan_to_num(), target).credit, torch.nan)


def _oracle_credit(margin: Tensor, oracle_margin: Tensor) -> Tensor:
    """Credit against the oracle's order: NaN where there is no oracle or it sees two equals."""
    return pair_credit(margin, (1 + torch.sign(oracle_margin.nan_to_num())) / 2).credit


def _kendall_tau(scored: ScoredSplit) -> AccuracyEstimate:
    tau = kendall_tau_by_group(scored.utility, scored.view.oracle, scored.view.prompt_of)
    return AccuracyEstimate.of(clustered_mean(tau, torch.arange(len(tau))))


def _calibration(scored: ScoredSplit, bins: int) -> CalibrationCard:
    view = scored.view
    chosen, rejected = scored.utility[view.chosen], scored.utility[view.rejected]
    law, rule = scored.law, scored.rule
    weights = Levels.of(rule, rule.sigmas, law).weights
    log_prob, log_prob_other = (
        law.log_prob_of_mean(margin, rule.sigmas, weights, rule.max_draws)
        for margin in (chosen - rejected, rejected - chosen)
    )
    curve = reliability(log_prob.exp(), view.target, bins)
    error = calibration_error(curve, view.prompt_of_pair)
    entropy = soft_nll(view.target.log(), (1 - view.target).log(), view.target)
    return CalibrationCard(
        ece=error.value,
        ece_interval=(error.low, error.high),
        ece_floor=calibration_floor(curve, view.prompt_of_pair),
        brier=_mean(view, brier_score(log_prob.exp(), view.target)),
        nll=_mean(view, soft_nll(log_prob, log_prob_other, view.target)),
        vote_entropy=float(entropy.mean()),
        reliability=tuple(
            ReliabilityBin(confidence=confidence, share=_mean(view, curve.favoured, curve.members == number))
            for number, confidence in enumerate(curve.confidence.tolist())
        ),
    )
