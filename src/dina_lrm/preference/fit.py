"""Fit a calibration to held-out votes: the law of choice by maximum likelihood, the map to reward, the spread over draws.

Everything is float64 on the CPU. Each pair counts once, whatever its number of votes: its target is the share of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import polygamma
from torch import Tensor

from dina_lrm.errors import DataError, ShapeError
from dina_lrm.preference.calibration import Calibration, CalibrationLevel, RewardKind
from dina_lrm.preference.tabulated import TabulatedThurstone
from dina_lrm.types import Spread, check_finite

__all__ = [
    "HeldOut",
    "LawParameters",
    "fit_calibration",
    "fit_law",
    "fit_margin_spread",
    "fit_parameters",
    "vote_loss",
]

FEWEST_PAIRS = 50
FEWEST_PROMPTS = 5
FEWEST_DRAWS = 4  # to measure how margins move over them
# So many draws of one pair outweigh what was known before: no knowledge of others is certain of a new one.
MOST_DOF = 1000.0
MOST_REFERENCES = 1000  # candidates that each other one is held against for the logistic map
_TOLERANCE = 1e-8
_SINGULAR = 1e-5  # curvature along one direction, of that along the other, which says nothing any more


@dataclass(frozen=True)
class HeldOut:
    """Labelled pairs that a model has not learned from, as it sees them.

    Attributes:
        sigmas: noise levels `[k]`, ascending.
        utility: of each candidate on each draw at each level `[n draws k]`.
        chosen: place of each pair's chosen candidate `[m]`.
        rejected: of the other `[m]`.
        target: share of votes for chosen `[m]`.
        prompt: number of each pair's prompt `[m]`: pairs of one prompt are no independent evidence.
    """

    sigmas: tuple[float, ...]
    utility: Tensor
    chosen: Tensor
    rejected: Tensor
    target: Tensor
    prompt: Tensor

    def __post_init__(self) -> None:
        if self.utility.ndim != 3 or self.utility.shape[2] != len(self.sigmas):
            raise ShapeError(f"utility must be [n draws {len(self.sigmas)}], got {list(self.utility.shape)}")
        if not self.chosen.shape == self.rejected.shape == self.target.shape == self.prompt.shape == (len(self),):
            raise ShapeError("chosen, rejected, target and prompt must all be [m], one a pair")
        check_finite("utility", self.utility)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, pairs: Tensor) -> HeldOut:
        """Some of the pairs, by mask or places, and their candidates."""
        chosen, rejected = self.chosen[pairs], self.rejected[pairs]
        kept, places = _numbered(torch.cat([chosen, rejected]))
        return HeldOut(
            self.sigmas,
            self.utility[kept],
            places[: len(chosen)],
            places[len(chosen) :],
            self.target[pairs],
            self.prompt[pairs],
        )

    @property
    def draws(self) -> int:
        """Draws of noise at every level."""
        return self.utility.shape[1]

    @property
    def margin(self) -> Tensor:
        """Utility of chosen less utility of rejected `[m draws k]`."""
        return self.utility[self.chosen] - self.utility[self.rejected]

    def mean_margin(self, levels: Sequence[int], draws: int) -> Tensor:
        """Margin averaged over the first draws of some levels `[m]`: what a request for these would see."""
        return self.margin[:, :draws, list(levels)].mean(dim=(1, 2))


def vote_loss(probit: Tensor, target: Tensor) -> Tensor:
    """Log loss `-y log Phi(z) - (1 - y) log Phi(-z)` against shares of votes y, of the same shape as z."""
    log_ndtr = torch.special.log_ndtr
    return -(target * log_ndtr(probit) + (1 - target) * log_ndtr(-probit))


@dataclass(frozen=True)
class LawParameters:
    """The two-parameter law `var(sigma) = scale sigma^2 + min_variance`, with standard errors over prompts.

    Attributes:
        scale: k.
        min_variance: variance of a clean image.
        scale_error: standard error of k.
        min_variance_error: of the other.
    """

    scale: float
    min_variance: float
    scale_error: float
    min_variance_error: float


def check_sound(pairs: HeldOut) -> None:
    """Refuse pairs that no law can be fitted to.

    Raises:
        DataError: too few pairs or prompts, nothing but ties, or utilities that tell no pair apart.
    """
    prompts, decided = len(_numbered(pairs.prompt)[0]), int((pairs.target != 0.5).sum())
    if len(pairs) < FEWEST_PAIRS or prompts < FEWEST_PROMPTS:
        raise DataError(
            f"a calibration needs {FEWEST_PAIRS} pairs of {FEWEST_PROMPTS} prompts or more, "
            f"got {len(pairs)} of {prompts}; give a larger split"
        )
    if decided < FEWEST_PAIRS // 2:
        raise DataError(
            f"a calibration needs pairs whose votes decide; {decided} of {len(pairs)} do, the others are ties"
        )
    _check_told_apart(pairs)


def _check_told_apart(pairs: HeldOut) -> None:
    """Margins, not utilities: a model that reads nothing but the prompt differs from prompt to prompt."""
    margin = pairs.margin
    for place, sigma in enumerate(pairs.sigmas):
        largest = float(pairs.utility[:, :, place].abs().max())
        if float(margin[:, :, place].square().mean().sqrt()) <= 1e-6 * (1 + largest):
            raise DataError(
                f"at sigma {sigma:g} the model gives the two candidates of every pair the same utility; it cannot be "
                "calibrated"
            )


def fit_law(pairs: HeldOut) -> TabulatedThurstone:
    """The law of choice, level by level, and what averages are worth, by maximum likelihood.

    Args:
        pairs: held out.

    Returns:
        The law.

    Raises:
        DataError: votes that go against the utilities, or that follow them without exception; utilities that tell no
            pair apart.
    """
    _check_told_apart(pairs)
    margin, target = pairs.margin, pairs.target
    single, settled = [], []
    for place, sigma in enumerate(pairs.sigmas):
        level = margin[:, :, place]
        single.append(_deviation(level, target[:, None].expand_as(level), sigma))
        # The mean of D draws says where endless draws would lead: what they still move goes with 1 / D.
        mean = _deviation(level.mean(dim=1), target, sigma) if pairs.draws > 1 else single[-1]
        share = 1 / pairs.draws
        endless = (mean - share * single[-1]) / (1 - share) if pairs.draws > 1 else mean
        settled.append(min(max(endless, 0.1 * single[-1]), single[-1]))
    law = TabulatedThurstone(pairs.sigmas, tuple(single), tuple(settled))
    return law if len(pairs.sigmas) == 1 else _with_disagreement(law, pairs)


def fit_parameters(pairs: HeldOut) -> LawParameters | None:
    """K and the clean variance by maximum likelihood, jointly over all levels and draws.

    Standard errors are those of the sandwich over prompts (Huber 1967; Liang and Zeger 1986): pairs of one prompt, and all
    levels and draws of one pair, are alike.

    Args:
        pairs: held out.

    Returns:
        The parameters; None where the votes do not tell the two apart: there is one level, or one of the two goes to 0.
    """
    if len(pairs.sigmas) < 2:
        return None
    margin, target = pairs.margin, pairs.target[:, None, None]
    squares = torch.tensor(pairs.sigmas, dtype=torch.float64).square()

    def loss(logs: Tensor) -> Tensor:
        variance = logs[0].exp() * squares + logs[1].exp()
        return vote_loss(margin / (2 * variance).sqrt(), target).mean(dim=(1, 2))

    logs = _least(loss, [0.0, -3.0])
    bends = torch.linalg.eigvalsh(_bend(loss, logs)[2])
    if float(bends[0]) <= _SINGULAR * float(bends[-1]):
        return None
    values = logs.exp()
    errors = values * _sandwich(loss, logs, pairs.prompt).diagonal().clamp(min=0).sqrt()
    scale, clean = values.tolist()
    scale_error, clean_error = errors.tolist()
    return LawParameters(scale, clean, scale_error, clean_error)


def fit_margin_spread(margin: Tensor) -> Spread:
    """How much the variance of a pair's margin over draws is, and how alike pairs are in it (Smyth 2004, section 6.2).

    The sample variances `s_i^2` of pairs with `d = draws - 1` degrees of freedom are taken as `s0^2 F(d, d0)`; d0 and s0^2
    come from the mean and variance of `log s_i^2`.

    Args:
        margin: `[m draws]`, two draws or more, not all equal.

    Returns:
        s0^2 and d0; d0 is at most `MOST_DOF`, which it is where the pairs differ by no more than chance.
    """
    dof = margin.shape[1] - 1
    variance = margin.var(dim=1)
    variance = variance[variance > 0]
    if not len(variance):
        return Spread(0.0, MOST_DOF)
    half = torch.tensor(dof / 2, dtype=torch.float64)
    logs = variance.double().log() - torch.special.digamma(half) + half.log()
    excess = float(logs.var() - torch.special.polygamma(1, half)) if len(logs) > 1 else 0.0
    if excess <= 0:
        return Spread(float(logs.mean().exp()), MOST_DOF)
    # Smyth's equation `trigamma(prior) = excess`; `1 / x < trigamma(x) < 1 / (x - 1/2)` holds its root.
    prior = brentq(lambda x: polygamma(1, x) - excess, 1 / excess, 0.5 + 1 / excess)
    shift = torch.special.digamma(torch.tensor(prior, dtype=torch.float64)) - math.log(prior)
    return Spread(float((logs.mean() + shift).exp()), min(2 * prior, MOST_DOF))


def fit_calibration(pairs: HeldOut, kind: RewardKind = "affine") -> Calibration:
    """Everything: the law, the map to reward over the pairs' candidates as reference, the spread over draws.

    Args:
        pairs: held out.
        kind: of the map: "affine" has mean 0 and standard deviation 1 over the candidates, "logistic" is the probability
            of being preferred to one of them.

    Returns:
        The calibration.

    Raises:
        DataError: pairs that no law can be fitted to.
    """
    check_sound(pairs)
    law, levels = fit_law(pairs), []
    for place, sigma in enumerate(pairs.sigmas):
        utility = pairs.utility[:, :, place]
        if kind == "affine":
            centre, spread = float(utility.mean()), float(utility.std())
        else:
            centre, spread = _fit_logistic(utility, law.single[place])
        moved = fit_margin_spread(pairs.margin[:, :, place]) if pairs.draws >= FEWEST_DRAWS else None
        levels.append(CalibrationLevel(sigma, centre, spread, moved))
    # For whoever names no level: the mean map.
    spread = sum(level.spread for level in levels) / len(levels)
    centre = sum(level.centre for level in levels) / len(levels)
    return Calibration(1 / spread, -centre / spread, kind, tuple(levels), law)


def _deviation(margin: Tensor, target: Tensor, sigma: float) -> float:
    """S of `P = Phi(margin / s)`."""
    size = float(margin.square().mean().sqrt())

    def loss(slope: Tensor) -> Tensor:
        return vote_loss(margin.flatten() * slope[0] / size, target.flatten())

    slope = float(_least(loss, [1.0])[0]) / size
    if not slope * size > 1e-3:
        raise DataError(
            f"at sigma {sigma:g} the votes do not follow the model's utilities at all; it cannot be calibrated on these pairs"
        )
    if slope * size > 50:
        raise DataError(
            f"at sigma {sigma:g} all votes follow the model's utilities without an exception, so no probability can be "
            "fitted; give more pairs, or harder ones"
        )
    return 1 / slope


def _with_disagreement(law: TabulatedThurstone, pairs: HeldOut) -> TabulatedThurstone:
    """With the disagreement that best explains the votes on means of two levels each, and on the mean of all."""
    places = range(len(law.sigmas))
    groups = [*combinations(places, 2), tuple(places)]
    means = [pairs.mean_margin(group, 1) for group in groups]

    def loss(disagreement: float) -> float:
        tried = TabulatedThurstone(law.sigmas, law.single, law.settled, disagreement)
        total = 0.0
        for group, mean in zip(groups, means, strict=True):
            deviation = tried.deviation([law.sigmas[place] for place in group])
            total += float(vote_loss(mean / deviation, pairs.target).mean())
        return total

    found = minimize_scalar(lambda log: loss(math.exp(log)), bounds=(math.log(1e-3), math.log(20.0)), method="bounded")
    return TabulatedThurstone(law.sigmas, law.single, law.settled, math.exp(found.x))


def _fit_logistic(utility: Tensor, deviation: float) -> tuple[float, float]:
    """Centre and spread of the sigmoid nearest to the mean probability of being preferred to a reference candidate."""
    values = utility.flatten().double()
    reference = values[:: max(1, len(values) // MOST_REFERENCES)]
    wins = torch.stack([torch.special.ndtr((value - reference) / deviation).mean() for value in values])
    middle, size = values.mean(), values.std()
    unit = (values - middle) / size

    def loss(line: Tensor) -> Tensor:
        logit = line[0] * unit + line[1]
        return -(wins * torch.nn.functional.logsigmoid(logit) + (1 - wins) * torch.nn.functional.logsigmoid(-logit))

    slope, shift = _least(loss, [1.0, 0.0]).tolist()
    spread = float(size) / slope
    return float(middle) - shift * spread, spread


def _least(loss: Callable[[Tensor], Tensor], start: Sequence[float]) -> Tensor:
    """The parameters `[p]` of the least mean loss; the loss is of parameters `[p]`, a value each observation."""
    found = minimize(
        lambda at: tuple(map(np.asarray, _bend(loss, torch.from_numpy(at))[:2])),
        np.asarray(start),
        jac=True,
        hess=lambda at: _bend(loss, torch.from_numpy(at))[2].numpy(),
        method="trust-exact",
        options={"gtol": _TOLERANCE},
    )
    return torch.from_numpy(found.x)


def _bend(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor, Tensor]:
    """The mean loss, its gradient `[p]` and its curvature `[p p]`."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(at).mean()
        (gradient,) = torch.autograd.grad(value, at, create_graph=True)
        rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in gradient]
    return float(value.detach()), gradient.detach(), torch.stack(rows)


def _sandwich(loss: Callable[[Tensor], Tensor], at: Tensor, clusters: Tensor) -> Tensor:
    """Covariance of the parameters `[p p]` that allows observations of one cluster to be alike."""
    small = 1e-5 * torch.eye(len(at), dtype=torch.float64)
    scores = torch.stack([(loss(at + step) - loss(at - step)) / 2e-5 for step in small], dim=1)
    names, numbers = _numbered(clusters)
    sums = torch.zeros(len(names), len(at), dtype=torch.float64).index_add_(0, numbers, scores)
    bread = torch.linalg.pinv(_bend(loss, at)[2] * len(clusters))
    return bread @ (sums.T @ sums) @ bread


def _numbered(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, ascending, and which of them each is."""
    names, places = np.unique(values.numpy(), return_inverse=True)
    return torch.from_numpy(names), torch.from_numpy(places)
