"""From the measurements of all runs to the numbers of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.metrics import Estimate
from studies.alignment.settings import Budget, config_of
from studies.runs import measurements_of

__all__ = ["Curve", "crossed_mean", "curve_of", "reach", "summarise"]

JUDGE = "oracle"


@dataclass(frozen=True)
class Curve:
    """What judge and proxy say over updates, over all seeds.

    Attributes:
        updates: of each measurement.
        judge: gain since the start, with its 95 % interval over seeds and prompts.
        proxy: the same of the reward that drove the run.
        seeds: the judge's gain of each seed `[s m]`.
        diversity: share of the start's.
        distance: from the generator as it was, as the monitor has it.
        end: the judge's gain of each seed and prompt at the end `[s q]`.
    """

    updates: list[int]
    judge: list[Estimate]
    proxy: list[Estimate]
    seeds: list[list[float]]
    diversity: list[float]
    distance: list[float]
    end: Tensor


def curve_of(root: Path, arm: str, reward: str, budget: Budget) -> Curve:
    """Of one arm under one reward."""
    found = [measurements_of(config_of(root, arm, reward, seed, budget).out) for seed in budget.seeds]
    steps = [measurement.step for measurement in found[0]]
    places = range(len(steps))

    def gains(name: str, kind: str) -> list[Tensor]:
        """`[s q]` at each measurement."""
        each = found[0][0].group_size
        values = [[getattr(m, kind)[name].double().view(-1, each).mean(dim=1) for m in run] for run in found]
        return [torch.stack([run[k] - run[0] for run in values]) for k in places]

    judge = gains(JUDGE, "judges")
    return Curve(
        updates=steps,
        judge=[crossed_mean(values) for values in judge],
        proxy=[crossed_mean(values) for values in gains("reward", "rewards")],
        seeds=[[float(values[s].mean()) for values in judge] for s in range(len(found))],
        diversity=[
            float(torch.stack([run[k].diversity.mean() / run[0].diversity.mean() for run in found]).mean())
            for k in places
        ],
        distance=[float(torch.stack([run[k].distance.mean() for run in found]).mean()) for k in places],
        end=judge[-1],
    )


def crossed_mean(values: Tensor, resamples: int = 2000) -> Estimate:
    """Mean over seeds and prompts `[s q]`, with the 95 % interval of a bootstrap that draws both anew (Owen 2007, the pigeonhole
    bootstrap); a single seed is itself.
    """
    generator, (seeds, prompts) = torch.Generator().manual_seed(0), values.shape
    means = []
    for _ in range(resamples):
        rows = torch.randint(seeds, (seeds,), generator=generator)
        columns = torch.randint(prompts, (prompts,), generator=generator)
        means.append(values[rows].mean(dim=0)[columns].mean())
    low, high = torch.quantile(torch.stack(means), torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Estimate(float(values.mean()), low, high, seeds * prompts, prompts)


def reach(curve: Curve, target: float) -> float | None:
    """Updates until a curve's mean first reaches a judge's gain, between measurements on a line; None if it never does."""
    if target <= curve.judge[0].value:
        return 0.0
    before = 0.0, curve.judge[0].value
    for step, estimate in zip(curve.updates, curve.judge, strict=True):
        if step and estimate.value >= target:
            low, start = before
            share = (target - start) / (estimate.value - start)
            return low + share * (step - low)
        before = float(step), estimate.value
    return None


def at(curve: Curve, updates: float) -> float:
    """A curve's mean after so many updates, on a line between measurements; its end beyond the last."""
    steps = [float(step) for step in curve.updates]
    if updates >= steps[-1]:
        return curve.judge[-1].value
    after = next(place for place, step in enumerate(steps) if step >= updates)
    if not after:
        return curve.judge[0].value
    low, high = steps[after - 1], steps[after]
    share = (updates - low) / (high - low)
    return curve.judge[after - 1].value * (1 - share) + curve.judge[after].value * share


def summarise(root: Path, budget: Budget, costs: dict[str, Any]) -> dict[str, Any]:
    """All numbers of the page, as JSON values."""
    rows: dict[str, Any] = {}
    for arm in costs:
        curves = {reward: curve_of(root, arm, reward, budget) for reward in budget.rewards}
        rows[arm] = {reward: _told(curve) for reward, curve in curves.items()}
        for reward in budget.rewards[1:]:
            rows[arm][reward]["against"] = _against(curves["latent"], curves[reward], costs[arm], reward)
    return {"rows": rows, "costs": costs, "seeds": list(budget.seeds), "prompts": budget.prompts}


def _ends(estimate: Estimate) -> list[float]:
    return [round(estimate.value, 4), round(estimate.low, 4), round(estimate.high, 4)]


def _told(curve: Curve) -> dict[str, Any]:
    return {
        "updates": curve.updates,
        "judge": [_ends(estimate) for estimate in curve.judge],
        "proxy": [_ends(estimate) for estimate in curve.proxy],
        "seeds": [[round(value, 4) for value in seed] for seed in curve.seeds],
        "diversity": [round(value, 4) for value in curve.diversity],
        "distance": [round(value, 6) for value in curve.distance],
    }


def _against(latent: Curve, pixels: Curve, costs: dict[str, Any], reward: str) -> dict[str, Any]:
    """What it takes the latent run to be where the pixel-driven run ends, and at its best, and both at equal operations."""
    whole = pixels.updates[-1]
    ratios = {
        "seconds": costs["latent"]["seconds"] / costs[reward]["seconds"],
        "flops": costs["latent"]["flops"]["total"] / costs[reward]["flops"]["total"],
    }
    best = max(range(len(pixels.judge)), key=lambda place: pixels.judge[place].value)
    return {
        "lead": _ends(crossed_mean(latent.end - pixels.end)),
        "last": _share(latent, pixels.judge[-1].value, whole, ratios),
        "best": {"update": pixels.updates[best]}
        | _share(latent, pixels.judge[best].value, max(1, pixels.updates[best]), ratios),
        "share_of_bytes": costs["latent"]["bytes"]["total"] / costs[reward]["bytes"]["total"],
        "share_of_activations": costs["latent"]["bytes"]["activations"] / costs[reward]["bytes"]["activations"],
        # The pixel-driven run after as many operations as the latent one has spent in all.
        "at_equal_flops": {
            "latent": round(latent.judge[-1].value, 4),
            reward: round(at(pixels, whole * ratios["flops"]), 4),
        },
    }


def _share(latent: Curve, target: float, spent: int, ratios: dict[str, float]) -> dict[str, float | None]:
    """Updates, seconds and operations after which the latent run is at a judge's gain, as shares of what another spent."""
    updates = reach(latent, target)
    shares = {name: None if updates is None else updates * ratio / spent for name, ratio in ratios.items()}
    return {"updates": updates, **shares}
