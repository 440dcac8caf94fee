"""The monitor against hacking: does the reward still mean what it meant when the run began?

Every measurement is compared with the first one, sample by sample: the same prompts and noise. What is compared is put in
standard deviations of the first one's samples, so that limits mean the same for every reward and every generator. A value is
beyond its limit when its whole 95 % interval is (bootstrap over prompts).

Judges that nothing is learned from are believed at once: one of them falls below its best, or falls while the reward rises,
or gains where the reward does not. Without judges there are signs: what a reward and its samples look like when they leave
the ground on which the reward was learned. One sign alone may have an innocent cause, so two must be beyond their limits, or
one far beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from scipy.stats import rankdata
from torch import Tensor

from dina_lrm.alignment.config import MonitorConfig
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.metrics import Estimate, clustered_mean

__all__ = ["Alarm", "Findings", "Monitor"]


@dataclass(frozen=True)
class Alarm:
    """One reason to think that the reward is being fooled.

    Attributes:
        name: of the signal, with the reward or judge that it is about.
        value: mean over samples.
        threshold: that the whole interval of the value is beyond.
        words: what it means.
    """

    name: str
    value: float
    threshold: float
    words: str


@dataclass(frozen=True)
class Findings:
    """What a measurement says.

    Attributes:
        step: of the measurement.
        alarms: none while all is well.
        figures: for metrics.jsonl; `figures_of` says under which names.
    """

    step: int
    alarms: tuple[Alarm, ...]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class _Signal:
    """A value that may be beyond its limit: the larger, the worse."""

    name: str
    value: Estimate
    limit: float
    words: str
    needed: bool = True  # what must be true besides

    def beyond(self, times: float = 1.0) -> bool:
        return self.needed and self.value.low > times * self.limit

    @property
    def alarm(self) -> Alarm:
        return Alarm(self.name, self.value.value, self.limit, self.words)

    @property
    def figures(self) -> dict[str, float]:
        return {**_with_ends(f"monitor/{self.name}", self.value), f"monitor/{self.name}/limit": self.limit}


class Monitor:
    """Judges measurements of one run, in their order; what it says depends on them and on nothing else.

    Attributes:
        config: limits.
        start: the first measurement.
        last_good: step of the last measurement without an alarm.
    """

    def __init__(self, config: MonitorConfig, start: Measurement) -> None:
        """Args:
        config: limits.
        start: of the generator as it was.
        """
        self.config, self.start, self.last_good = config, start, start.step
        self._best = dict.fromkeys(start.judges, start)

    @classmethod
    def replay(cls, config: MonitorConfig, measurements: Sequence[Measurement]) -> Self:
        """The monitor as it is after these measurements.

        Args:
            config: limits.
            measurements: in their order, the first one first.

        Raises:
            ValueRangeError: none at all.
        """
        if not measurements:
            raise ValueRangeError("a monitor begins with a measurement of the generator as it was, got none")
        monitor = cls(config, measurements[0])
        for now in measurements:
            monitor.judge(now)
        return monitor

    def judge(self, now: Measurement) -> Findings:
        """Look at a measurement.

        Args:
            now: of the same samples as the first.

        Raises:
            ShapeError: of other samples, rewards or judges.
        """
        _check_paired(self.start, now)
        judged = [*self._falls(now), *self._quarrels(now)]
        signs = list(_signs(self.start, now, self.config))
        beyond = [sign for sign in signs if sign.beyond()]
        alarmed = [signal for signal in judged if signal.beyond()]
        if len(beyond) >= self.config.signs or any(sign.beyond(self.config.far) for sign in beyond):
            alarmed += beyond
        if not alarmed:
            self.last_good = now.step
        for name, values in now.judges.items():
            if _mean(values) > _mean(self._best[name].judges[name]):
                self._best[name] = now
        figures = _told(self.start, now)
        for signal in (*judged, *signs):
            figures |= signal.figures
        figures |= {"monitor/signs": float(len(beyond)), "monitor/last_good": float(self.last_good)}
        return Findings(now.step, tuple(signal.alarm for signal in alarmed), figures)

    def _falls(self, now: Measurement) -> Iterator[_Signal]:
        """Judges below their best."""
        for name, values in now.judges.items():
            best = self._best[name]
            fall = _paired(now, -_effect(values, best.judges[name], self.start.judges[name]))
            yield _Signal(
                f"judge/{name}",
                fall,
                self.config.judge_fall,
                f"the judge {name}, from which nothing is learned, is {fall.value:.2f} standard deviations of the start's "
                f"samples below its best, which it had at step {best.step}",
            )

    def _quarrels(self, now: Measurement) -> Iterator[_Signal]:
        """A judge falls while a reward rises; or samples that gain with a reward lose with a judge."""
        for reward, values in now.rewards.items():
            rise = _paired(now, _effect(values, self.start.rewards[reward]))
            for judge, verdicts in now.judges.items():
                best = self._best[judge]
                since = _paired(now, values - best.rewards[reward])
                fall = _paired(now, -_effect(verdicts, best.judges[judge], self.start.judges[judge]))
                yield _Signal(
                    f"divergence/{reward}/{judge}",
                    fall,
                    self.config.divergence,
                    f"since step {best.step} the reward {reward} has risen and the judge {judge} has fallen, by "
                    f"{fall.value:.2f} standard deviations",
                    needed=since.low > 0,
                )
                against = _disagreement(self.start, now, reward, judge)
                yield _Signal(
                    f"disagreement/{reward}/{judge}",
                    against,
                    0.0,
                    f"samples that gained most by the reward {reward} lost by the judge {judge}: their gains correlate at "
                    f"{-against.value:+.2f}",
                    needed=rise.low > 0,
                )


def _signs(start: Measurement, now: Measurement, config: MonitorConfig) -> Iterator[_Signal]:
    """What needs no judge."""
    for name, values in now.spreads.items():
        value, way = _either_way(_paired(now, _effect(values, start.spreads[name])))
        yield _Signal(
            f"spread/{name}",
            value,
            config.spread,
            f"the reward {name} is sure of other things than before: its spread over noise draws has gone {way} by "
            f"{value.value:.1f} standard deviations",
        )
    for name, values in now.profiles.items():
        if values.shape[1] > 1:
            yield _drift(start, now, name, config.profile)
    for name, values in now.rewards.items():
        value = _paired(now, _beyond(values, start.rewards[name]))
        yield _Signal(
            f"range/{name}",
            value,
            config.range,
            f"{100 * value.value:.0f} % of the samples have a reward {name} that at the start only one in a hundred had: it is "
            "asked about pictures unlike any that it began with",
        )
    yield from _of_samples(start, now, config)


def _of_samples(start: Measurement, now: Measurement, config: MonitorConfig) -> Iterator[_Signal]:
    """Signs that need no reward either."""
    value = _paired(now, _effect(now.grid, start.grid))
    yield _Signal(
        "grid",
        value,
        config.grid,
        f"a regular pattern has come into the pictures: their grid score is up by {value.value:.1f} standard deviations",
    )
    value, way = _either_way(_paired(now, _effect(now.norm, start.norm)))
    yield _Signal(
        "norm",
        value,
        config.norm,
        f"the size of the latents has gone {way} by {value.value:.1f} standard deviations",
    )
    if len(now.diversity):
        value = _paired(replace(now, group_size=1), 1 - now.diversity / start.diversity)
        yield _Signal(
            "diversity",
            value,
            config.diversity,
            f"samples of one prompt have become alike: their distance has shrunk by {100 * value.value:.0f} %",
        )
    value = _paired(now, now.distance / (1 + start.norm.square()))
    yield _Signal(
        "distance",
        value,
        config.distance,
        f"the generator has moved away from what it was: its velocities differ by {100 * value.value:.1f} % of their power",
    )


def _drift(start: Measurement, now: Measurement, name: str, limit: float) -> _Signal:
    """By how much more the reward has risen at one level than at the others."""
    before = start.profiles[name]
    gains = torch.stack([_effect(now.profiles[name][:, k], before[:, k]) for k in range(before.shape[1])], dim=1)
    most = int(gains.nanmean(dim=0).argmax())
    others = [k for k in range(gains.shape[1]) if k != most]
    value = _paired(now, gains[:, most] - gains[:, others].mean(dim=1))
    return _Signal(
        f"profile/{name}",
        value,
        limit,
        f"the reward {name} has risen at sigma {now.sigmas[most]:g} by {value.value:.1f} standard deviations more than at other "
        "levels: what it likes can be seen at one noise level only",
    )


def _disagreement(start: Measurement, now: Measurement, reward: str, judge: str) -> Estimate:
    """Less the rank correlation of two gains over samples; its interval by Fisher's z, with as many cases as prompts."""
    first, second = now.rewards[reward] - start.rewards[reward], now.judges[judge] - start.judges[judge]
    known = first.isfinite() & second.isfinite()
    cases = int(known.sum()) // now.group_size
    if cases < 5 or not first[known].std() or not second[known].std():
        return Estimate(math.nan, math.nan, math.nan, cases, cases)
    ranks = torch.stack([_ranks(first[known]), _ranks(second[known])])
    against = -float(torch.corrcoef(ranks)[0, 1])
    z, half = math.atanh(max(-0.9999, min(0.9999, against))), 1.96 * 1.03 / math.sqrt(cases - 3)
    return Estimate(against, math.tanh(z - half), math.tanh(z + half), cases, cases)


def _ranks(values: Tensor) -> Tensor:
    return torch.from_numpy(rankdata(values.numpy()))  # ties share a rank


def _effect(now: Tensor, before: Tensor, start: Tensor | None = None) -> Tensor:
    """Difference of each sample, in standard deviations of the start's samples."""
    start = before if start is None else start
    known = start[start.isfinite()].double()
    # Samples that are all alike at the start have no scale of their own; a thousandth of their size is one.
    scale = max(float(known.std(correction=0)), 1e-3 * float(known.abs().mean()), 1e-12) if len(known) else math.nan
    return (now.double() - before.double()) / scale


def _beyond(now: Tensor, start: Tensor) -> Tensor:
    """1 for samples above 99 % of the start's, else 0; NaN where there is no reward."""
    known = start[start.isfinite()].double()
    if not len(known):
        return torch.full_like(now, math.nan)
    return torch.where(now.isfinite(), (now.double() > known.quantile(0.99)).double(), math.nan)


def _paired(now: Measurement, values: Tensor) -> Estimate:
    """Mean over samples with its interval over prompts."""
    values = torch.where(values.isfinite(), values, math.nan)
    return clustered_mean(values, torch.arange(len(values)) // now.group_size)


def _either_way(value: Estimate) -> tuple[Estimate, str]:
    """The size of a shift that may go up or down, and which way it went."""
    if value.value < 0:
        return replace(value, value=-value.value, low=-value.high, high=-value.low), "down"
    return value, "up"


def _mean(values: Tensor) -> float:
    return float(values.double().nanmean())


def _with_ends(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.value, f"{name}/low": value.low, f"{name}/high": value.high}


def _told(start: Measurement, now: Measurement) -> dict[str, float]:
    """Means, and gains since the start, in their own units."""
    figures: dict[str, float] = {}
    for kind, values, before in (("reward", now.rewards, start.rewards), ("judge", now.judges, start.judges)):
        for name, found in values.items():
            figures |= _with_ends(f"{kind}/{name}", _paired(now, found))
            figures |= _with_ends(f"gain/{name}", _paired(now, found - before[name]))
    for name, found in now.profiles.items():
        figures |= {f"profile/{name}/{s:g}": _mean(found[:, k]) for k, s in enumerate(now.sigmas)}
        before_ = start.profiles[name]
        for k, sigma in enumerate(now.sigmas):
            figures[f"profile_gain/{name}/{sigma:g}"] = _mean(_effect(found[:, k], before_[:, k]))
    figures |= {f"spread/{name}": _mean(found) for name, found in now.spreads.items()}
    plain = {"grid": now.grid, "norm": now.norm, "diversity": now.diversity, "distance": now.distance}
    return figures | {name: _mean(found) for name, found in plain.items() if len(found)}


def _check_paired(start: Measurement, now: Measurement) -> None:
    """Refuse what cannot be compared sample by sample."""
    for what in ("rewards", "judges", "spreads", "profiles"):
        left, right = getattr(start, what), getattr(now, what)
        shapes = [{name: list(value.shape) for name, value in of.items()} for of in (left, right)]
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"measurements of one run have the same samples; {what} were {shapes[0]} at step {start.step} and are "
                f"{shapes[1]} at step {now.step}"
            )
    if (start.group_size, start.sigmas, len(start.grid)) != (now.group_size, now.sigmas, len(now.grid)):
        raise ShapeError(
            f"measurements of one run have the same samples; step {start.step} has {len(start.grid)} in groups of "
            f"{start.group_size}, step {now.step} has {len(now.grid)} in groups of {now.group_size}"
        )
