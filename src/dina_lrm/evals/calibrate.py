"""Fit a model's calibration on held-out pairs, and say how well its probabilities tell the votes before and after.

"After" is always judged on prompts that the fit has not seen: two halves of the prompts, each judged by the fit on the
other. Where a half is too small for a fit, "after" is not judged. The parameters that are saved come from all pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.checkpoint import (
    CalibrationConfig,
    CalibrationQuality,
    CalibrationScore,
    LawParametersConfig,
    LevelCalibrationConfig,
    fingerprint,
)
from dina_lrm.data import PreferenceData
from dina_lrm.errors import DataError, ValueRangeError
from dina_lrm.evals.card import AccuracyEstimate, Card, ReliabilityBin
from dina_lrm.evals.evaluate import encode_shown, prompt_seed
from dina_lrm.evals.space import check_latent_space
from dina_lrm.evals.splits import SplitView, first_half
from dina_lrm.metrics import (
    Reliability,
    brier_score,
    calibration_error,
    calibration_floor,
    clustered_mean,
    reliability,
    soft_nll,
)
from dina_lrm.preference import Calibration, Likelihood, RewardKind, TabulatedThurstone
from dina_lrm.preference.fit import HeldOut, check_sound, fit_calibration, fit_law, fit_parameters
from dina_lrm.runtime.files import sha256_file
from dina_lrm.runtime.parts import Parts
from dina_lrm.runtime.progress import ProgressBar
from dina_lrm.scoring import RewardModel

__all__ = ["CalibrationCurve", "CalibrationReport", "CalibrationSettings", "calibrate", "held_out_pairs"]

_CHUNK = 64  # candidates that a kill can lose
_ENSEMBLE = (0.2, 0.5, 0.7)
_TYPICAL = 0.4


@dataclass(frozen=True)
class CalibrationSettings:
    """What a calibration is fitted on.

    Attributes:
        split: of the preference folder: pairs that the model has not learned from.
        sigmas: the grid of levels.
        draws: of noise at every level; 4 or more also tell how margins move over draws.
        kind: of the map to reward.
        seed: of the noise, with the words of each prompt.
        max_prompts: use only so many prompts.
        max_batch_size: noised pictures in one forward.
    """

    split: str = "validation"
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    draws: int = 4
    kind: RewardKind = "affine"
    seed: int = 0
    max_prompts: int | None = None
    max_batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.sigmas or list(self.sigmas) != sorted(set(self.sigmas)):
            raise ValueRangeError(f"sigmas must be one or more levels, ascending, each once, got {list(self.sigmas)}")
        if not 0 <= self.sigmas[0] <= self.sigmas[-1] <= 1:
            raise ValueRangeError(f"sigma must lie in [0, 1], got {list(self.sigmas)}")
        if self.draws < 1:
            raise ValueRangeError(f"draws must be 1 or more, got {self.draws}")


class CalibrationCurve(Card):
    """The reliability curve of one way of asking, before and after; the latter is empty where it was not judged."""

    label: str
    before: tuple[ReliabilityBin, ...]
    after: tuple[ReliabilityBin, ...]


class CalibrationReport(Card):
    """What was fitted, how well it does, and the curves behind the numbers.

    Attributes:
        model: its name.
        calibration: what was fitted.
        curves: by way of asking.
        nll_change: log loss of the fit less that of the law the model was trained under, mean over ways of asking; None where
            the fit was not judged.
    """

    model: str
    calibration: CalibrationConfig
    curves: tuple[CalibrationCurve, ...]
    nll_change: AccuracyEstimate | None = None


@dataclass(frozen=True)
class _Way:
    """One way of asking: the mean over some levels and draws."""

    label: str
    places: tuple[int, ...]
    draws: int


def calibrate(
    model: RewardModel,
    data: PreferenceData,
    settings: CalibrationSettings | None = None,
    name: str = "",
    work: Path | None = None,
    quiet: bool = False,
) -> CalibrationReport:
    """Score a split at every level and draw, fit, and judge the fit.

    Args:
        model: the reward model; it stays as it is.
        data: the preference folder.
        settings: split, levels, draws, kind of reward.
        name: of the model, for the report.
        work: folder for utilities of candidates, so that killed work goes on; it stays until the caller has saved the report
            and removes it. None keeps none.
        quiet: no progress on stderr.

    Returns:
        The calibration, ready to be saved, with its quality and curves.

    Raises:
        DataError: latents of another space, or pairs that no law can be fitted to.
    """
    settings = settings or CalibrationSettings()
    check_latent_space(data, model.network.backbone)
    pairs = held_out_pairs(model, data, settings, work, quiet)
    check_sound(pairs)
    fitted = fit_calibration(pairs, settings.kind)
    folds, not_judged = _folds(pairs)
    judged = [_judge(pairs, way, model.likelihood.choice(), folds) for way in _ways(pairs)]
    told = _config(fitted, pairs, settings, f"{data.folder.name}, {settings.split}")
    qualities, curves, changes = zip(*judged, strict=True)
    told = told.model_copy(update={"quality": qualities, "not_judged": not_judged})
    change = AccuracyEstimate.of(clustered_mean(torch.stack(changes).mean(0), pairs.prompt)) if folds else None
    return CalibrationReport(model=name, calibration=told, curves=curves, nll_change=change)


@torch.no_grad()
def held_out_pairs(
    model: RewardModel,
    data: PreferenceData,
    settings: CalibrationSettings,
    work: Path | None = None,
    quiet: bool = False,
) -> HeldOut:
    """Utilities of a split's candidates at every level and draw; arguments as `calibrate`."""
    view = SplitView.of(data, settings.split, settings.max_prompts)
    parts = None if work is None else Parts.open(work, _depends_on(model, data, settings))
    found: list[dict[str, Tensor]] = []
    starts = range(0, len(view.rows), _CHUNK)
    done = 0 if parts is None else sum(number in parts for number in range(len(starts)))
    with ProgressBar("score", len(starts), done, enabled=not quiet) as bar:
        for number, start in enumerate(starts):
            part = None if parts is None else parts.get(number)
            if part is None:
                prompts = [view.prompts[i] for i in view.prompt_of[start : start + _CHUNK].tolist()]
                answer = model.score(
                    conditioning=encode_shown(model, prompts),
                    latents=data.latents(view.rows[start : start + _CHUNK]),
                    sigmas=settings.sigmas,
                    draws=settings.draws,
                    seed=[prompt_seed(prompt, settings.seed) for prompt in prompts],
                    max_batch_size=settings.max_batch_size,
                )
                part = {"utility": answer.draws.cpu().double(), "sigmas": answer.sigmas.cpu().double()}
                if parts is not None:
                    parts.put(number, part)
                bar.advance()
            found.append(part)
    levels = len(settings.sigmas)
    read = tuple(round(sigma, 6) for sigma in found[0]["sigmas"][:levels].tolist())  # a schedule's own, if it snaps
    if len(set(read)) < levels:
        raise DataError(
            f"the model's schedule knows fewer levels than were asked: {list(settings.sigmas)} became {list(read)}"
        )
    utility = torch.cat([part["utility"] for part in found]).view(-1, settings.draws, levels)
    return HeldOut(read, utility, view.chosen, view.rejected, view.target, view.prompt_of_pair)


def _depends_on(model: RewardModel, data: PreferenceData, settings: CalibrationSettings) -> dict[str, Any]:
    """What a candidate's utility depends on."""
    return {
        "model": fingerprint(model.network, model.config),
        "data": sha256_file(data.folder / "dataset.json"),
        "settings": json.dumps({k: v for k, v in asdict(settings).items() if k not in ("kind", "max_batch_size")}),
    }


def _ways(pairs: HeldOut) -> list[_Way]:
    """Each level by itself, and the averages that people ask for."""
    ways = [_Way(f"sigma {sigma:g}", (place,), 1) for place, sigma in enumerate(pairs.sigmas)]
    groups = {f"mean of {', '.join(f'{s:g}' for s in _ENSEMBLE)}": _places(pairs, _ENSEMBLE)}
    if len(pairs.sigmas) > 1:
        groups["mean of all levels"] = tuple(range(len(pairs.sigmas)))
    for label, places in groups.items():
        ways += [_Way(label, places, 1)] if places else []
    many = {f"sigma {_TYPICAL:g}": _places(pairs, (_TYPICAL,)), **groups} if pairs.draws > 1 else {}
    ways += [_Way(f"{label}, {pairs.draws} draws", places, pairs.draws) for label, places in many.items() if places]
    return ways


def _places(pairs: HeldOut, sigmas: Sequence[float]) -> tuple[int, ...]:
    """Where levels stand on the grid; none if one of them does not."""
    near = [min(range(len(pairs.sigmas)), key=lambda place: abs(pairs.sigmas[place] - sigma)) for sigma in sigmas]
    whole = all(abs(pairs.sigmas[place] - sigma) < 0.005 for place, sigma in zip(near, sigmas, strict=True))
    return tuple(near) if whole else ()


def _folds(pairs: HeldOut) -> tuple[list[tuple[Tensor, TabulatedThurstone]], str | None]:
    """Two halves of the pairs by prompt, each with the law that was fitted to the other.

    Returns:
        The two, or none and why: a half may not bear a fit that all pairs bear.
    """
    first = first_half(pairs.prompt)
    folds = []
    for name, half in (("second", ~first), ("first", first)):
        try:
            folds.append((~half, fit_law(pairs[half])))
        except DataError as error:
            return [], f"the {name} half of the prompts ({int(half.sum())} pairs) bears no fit of its own: {error}"
    return folds, None


def _judge(
    pairs: HeldOut, way: _Way, own: Likelihood, folds: Sequence[tuple[Tensor, TabulatedThurstone]]
) -> tuple[CalibrationQuality, CalibrationCurve, Tensor]:
    """Quality, curve, and how the log loss of each pair changes `[m]`: zero where nothing was fitted."""
    sigmas = tuple(pairs.sigmas[place] for place in way.places)
    margin = pairs.mean_margin(way.places, way.draws)
    sides: dict[int, dict[str, Tensor]] = {}
    for sign in (1, -1):
        before = own.log_prob_of_mean(sign * margin, sigmas, None, way.draws)
        sides[sign] = {"before": before}
        if folds:
            sides[sign]["after"] = after = torch.empty_like(before)
        for here, law in folds:
            after[here] = law.log_prob_of_mean(sign * margin[here], sigmas, None, way.draws)
    scores: dict[str, CalibrationScore | None] = {"after": None}
    curves: dict[str, tuple[ReliabilityBin, ...]] = {"after": ()}
    for when in sides[1]:
        curve = reliability(sides[1][when].exp(), pairs.target)
        scores[when] = _score(curve, sides[1][when], sides[-1][when], pairs)
        curves[when] = _bins(curve, pairs.prompt)
        floor = calibration_floor(curve, pairs.prompt)
    entropy = soft_nll(pairs.target.log(), (1 - pairs.target).log(), pairs.target).mean()
    quality = CalibrationQuality(
        label=way.label,
        sigmas=sigmas,
        draws=way.draws,
        ece_floor=floor,
        vote_entropy=float(entropy),
        **scores,
    )
    losses = [soft_nll(sides[1][when], sides[-1][when], pairs.target) for when in sides[1]]
    return quality, CalibrationCurve(label=way.label, **curves), losses[-1] - losses[0]


def _score(curve: Reliability, log_prob: Tensor, log_prob_other: Tensor, pairs: HeldOut) -> CalibrationScore:
    error = calibration_error(curve, pairs.prompt)
    return CalibrationScore(
        ece=error.value,
        ece_low=error.low,
        ece_high=error.high,
        brier=float(brier_score(log_prob.exp(), pairs.target).mean()),
        nll=float(soft_nll(log_prob, log_prob_other, pairs.target).mean()),
    )


def _bins(curve: Reliability, prompt: Tensor) -> tuple[ReliabilityBin, ...]:
    def share(number: int) -> AccuracyEstimate:
        inside = curve.members == number
        return AccuracyEstimate.of(clustered_mean(curve.favoured[inside], prompt[inside], resamples=500))

    return tuple(
        ReliabilityBin(confidence=confidence, share=share(number))
        for number, confidence in enumerate(curve.confidence.tolist())
    )


def _config(fitted: Calibration, pairs: HeldOut, settings: CalibrationSettings, source: str) -> CalibrationConfig:
    law = fitted.choice
    assert isinstance(law, TabulatedThurstone)
    parameters = fit_parameters(pairs)
    levels = [
        LevelCalibrationConfig(
            sigma=level.sigma,
            centre=level.centre,
            spread=level.spread,
            deviation=law.single[place],
            settled_deviation=law.settled[place],
            margin_variance=None if level.margin is None else level.margin.variance,
            margin_dof=None if level.margin is None or level.margin.dof == float("inf") else level.margin.dof,
        )
        for place, level in enumerate(fitted.levels)
    ]
    return CalibrationConfig(
        scale=fitted.scale,
        shift=fitted.shift,
        fitted_on=source,
        kind=fitted.kind,
        levels=tuple(levels),
        disagreement=law.disagreement,
        parameters=None if parameters is None else LawParametersConfig(**asdict(parameters)),
        pairs=len(pairs),
        prompts=len(set(pairs.prompt.tolist())),
        draws=pairs.draws,
        seed=settings.seed,
    )
