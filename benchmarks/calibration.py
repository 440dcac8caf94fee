"""Is P(a preferred) what people do? Laws fitted on validation pairs, judged on the test pairs of the emoji world.

    trained     the law that the model was trained under, k = 2 and a clean variance of 0.05
    parabola    k and the clean variance by maximum likelihood
    mean        a variance a level by maximum likelihood; an average over levels is given their mean variance
    fitted      the same table; an average over levels is worth what `TabulatedThurstone` says: what `calibrate` saves

Each row is one way of asking. ECE is to be read beside the last column: what the truth itself would show on these votes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.data import PreferenceData
from dina_lrm.demo.models import Models
from dina_lrm.demo.settings import FAST, FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.evals import CalibrationSettings, held_out_pairs
from dina_lrm.metrics import calibration_error, calibration_floor, reliability
from dina_lrm.preference import Likelihood, TabulatedThurstone, Thurstone
from dina_lrm.preference.fit import HeldOut, fit_law, fit_parameters, vote_loss
from dina_lrm.scoring import RewardModel
from dina_lrm.worlds.locate import emoji_root

ENSEMBLE = (0.2, 0.5, 0.7)


def main(quick: bool = True, model: str | None = None, keep: Path = Path("runs/calibration")) -> list[dict[str, Any]]:
    """A row a way of asking; quick is a model of a minute, three levels and a dozen prompts."""
    world = emoji_root()
    data = PreferenceData.open(world / "preferences")
    budget, name = (FAST, "30-steps") if quick else (FULL, "330-steps")
    if model is None:
        config = train_config(world, Path("runs/seeds") / name / "query-0", RUNS["main"], budget, num_blocks(world), 0)
        scorer = Models({"query": config}, quiet=True)["query"]
    else:
        scorer = RewardModel.from_pretrained(model)
    asked = {"sigmas": ENSEMBLE, "draws": 2, "max_prompts": 20} if quick else {"draws": 9}
    pairs = {
        split: held_out_pairs(scorer, data, CalibrationSettings(split=split, **asked), keep / split)
        for split in ("validation", "test")
    }
    laws = fitted_laws(pairs["validation"], scorer.likelihood.choice())
    return [_row(pairs["test"], laws, places, draws) for places, draws in _ways(pairs["test"])]


def fitted_laws(pairs: HeldOut, trained: Likelihood) -> dict[str, Likelihood]:
    """The laws of the table, by the name of their column."""
    parameters, fitted = fit_parameters(pairs), fit_law(pairs)
    mean = MeanVariance(fitted.sigmas, fitted.single, fitted.settled)
    # No column where the votes do not tell its two numbers apart.
    parabola = {} if parameters is None else {"parabola": Thurstone(parameters.scale, parameters.min_variance)}
    return {"trained": trained, **parabola, "mean": mean, "fitted": fitted}


class MeanVariance(TabulatedThurstone):
    """The table without what it says of averages: what any law that was not fitted to them would do."""

    def deviation(self, sigmas: Any, weights: Any = None, draws: int = 1) -> float:
        levels = torch.tensor(list(sigmas), dtype=torch.float64)
        return float((2 * self.variance(levels).mean()).sqrt())


def _ways(pairs: HeldOut) -> list[tuple[tuple[int, ...], int]]:
    every = tuple(range(len(pairs.sigmas)))
    ensemble = tuple(pairs.sigmas.index(sigma) for sigma in ENSEMBLE)
    ways = [((place,), 1) for place in every] + [(ensemble, 1), (every, 1)]
    typical = ((pairs.sigmas.index(0.4),), pairs.draws) if 0.4 in pairs.sigmas else ((every[1],), pairs.draws)
    return list(dict.fromkeys([*ways, typical, (ensemble, pairs.draws), (every, pairs.draws)]))


def _row(pairs: HeldOut, laws: dict[str, Likelihood], places: tuple[int, ...], draws: int) -> dict[str, Any]:
    margin = pairs.mean_margin(places, draws)
    sigmas = tuple(pairs.sigmas[place] for place in places)
    row: dict[str, Any] = {"levels": "all" if len(sigmas) > 5 else ", ".join(f"{s:g}" for s in sigmas), "draws": draws}
    losses: dict[str, float] = {}
    for name, law in laws.items():
        probability = law.log_prob_of_mean(margin, sigmas, None, draws).exp()
        curve = reliability(probability, pairs.target)
        row[f"ECE {name}"] = round(curve.error, 4)
        losses[f"NLL {name}"] = round(float(_loss(probability, pairs.target)), 4)
    error = calibration_error(curve, pairs.prompt)
    row["95 % of fitted"] = f"{error.low:.3f} to {error.high:.3f}"
    row["ECE of the truth"] = round(calibration_floor(curve, pairs.prompt), 4)
    return row | losses


def _loss(probability: Tensor, target: Tensor) -> Tensor:
    return vote_loss(torch.special.ndtri(probability.clamp(1e-12, 1 - 1e-12)), target).mean()


if __name__ == "__main__":
    from benchmarks.__main__ import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", help="a model folder instead of the one that is trained here")
    given = parser.parse_args()
    print(table(main(given.quick, given.model)))
