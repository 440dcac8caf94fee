"""Utilities of draws and levels to what is said of a sample: mean, spread, standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dina_lrm.noise import NoiseEnsemble
from dina_lrm.preference import Likelihood


@dataclass(frozen=True)
class Levels:
    """The noise levels of a request, what each weighs, and the law's variance there.

    Attributes:
        sigmas: levels that are read `[k]`.
        weights: of each level's utility in the mean; they add up to 1.
        variances: of one candidate's perceived worth at each level, by the law of choice.
    """

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]
    variances: tuple[float, ...]

    @staticmethod
    def of(ensemble: NoiseEnsemble, sigmas: Sequence[float], law: Likelihood) -> Levels:
        """Equal weights, or those of "weighted": the inverse of the law's variance."""
        variances = law.variance(torch.tensor(sigmas, dtype=torch.float64)).tolist()
        raw = [1 / v for v in variances] if ensemble.fusion == "weighted" else [1.0] * len(sigmas)
        return Levels(tuple(sigmas), tuple(w / sum(raw) for w in raw), tuple(variances))

    @property
    def deviation(self) -> float:
        """Of a mean over the levels of one draw, by the law: they share their noise, as if wholly correlated."""
        return sum(w * math.sqrt(v) for w, v in zip(self.weights, self.variances, strict=True))


@dataclass(frozen=True)
class Draws:
    """Utilities that were read so far.

    Attributes:
        values: `[b draws columns]`; NaN where a sample was not drawn.
        count: draws of each sample `[b]`, int64 on the CPU.
        ensemble: that asked for them.
    """

    values: Tensor
    count: Tensor
    ensemble: NoiseEnsemble

    @staticmethod
    def none(samples: int, ensemble: NoiseEnsemble) -> Draws:
        """Before the first draw."""
        return Draws(torch.empty(samples, 0, ensemble.columns), torch.zeros(samples, dtype=torch.int64), ensemble)

    @property
    def joined(self) -> bool:
        """One utility a draw stands for all levels."""
        return self.ensemble.fusion == "tokens"

    def more(self, which: Tensor, drawn: Tensor) -> Draws:
        """With further draws `[m draws columns]` of some samples."""
        count = self.count.clone()
        count[which] += drawn.shape[1]
        if len(which) != len(count):
            rows = drawn.new_full((len(count), *drawn.shape[1:]), math.nan)
            drawn = rows.index_copy(0, which.to(drawn.device), drawn)
        return replace(self, values=torch.cat([self.values.to(drawn), drawn], dim=1), count=count)

    def alive(self) -> Tensor:
        """Samples that were drawn to the last, bool `[b]`."""
        return self.count == self.count.max()

    def by_draw(self, levels: Levels) -> Tensor:
        """Each draw's weighted mean over its levels `[b draws]`."""
        if self.joined or len(levels.sigmas) == 1:
            return self.values[:, :, 0]
        return (self.values * self.values.new_tensor(levels.weights)).sum(dim=2)

    def utility(self, levels: Levels) -> Tensor:
        """Mean over draws `[b]`."""
        return self._mean(self.by_draw(levels))

    def utility_std(self, levels: Levels) -> Tensor:
        """Spread over draws and levels `[b]`; the law's where there is but one."""
        values = self.values.detach().flatten(1)
        count = (~values.isnan()).sum(dim=1)
        centred = torch.nan_to_num(values - values.nanmean(dim=1, keepdim=True))
        measured = (centred.square().sum(dim=1) / (count - 1).clamp(min=1)).sqrt()
        return torch.where(count > 1, measured, levels.deviation)

    def standard_error(self, levels: Levels) -> Tensor:
        """Of `utility` over noise `[b]`: from the draws where there are two that are independent, else from the law.

        A draw is one noise at all levels, so draws are independent and levels are not: the variance is that of the
        draws' means. Draws that come in antithetic pairs are independent by pairs.
        """
        units = self.units(self.by_draw(levels).detach())
        count = (self.count // self.ensemble.step).to(units.device)
        centred = torch.nan_to_num(units - units.nanmean(dim=1, keepdim=True))
        measured = (centred.square().sum(dim=1) / (count - 1).clamp(min=1) / count.clamp(min=1)).sqrt()
        return torch.where(count > 1, measured, levels.deviation)

    def margins(self, levels: Levels, a: int, b: int) -> Tensor:
        """Utility of a less utility of b on each draw that both have `[n]`."""
        shared = int(min(self.count[a], self.count[b]))
        values = self.by_draw(levels)
        return values[a, :shared] - values[b, :shared]

    def units(self, values: Tensor) -> Tensor:
        """Draws `[... draws]` to what is independent: antithetic pairs are averaged."""
        if not self.ensemble.antithetic:
            return values
        return values.view(*values.shape[:-1], -1, 2).mean(dim=-1)

    def _mean(self, values: Tensor) -> Tensor:
        if bool((self.count == values.shape[1]).all()):
            return values.mean(dim=1)
        drawn = ~values.isnan()
        return torch.where(drawn, values, 0.0).sum(dim=1) / drawn.sum(dim=1)
