"""What the benchmark of adaptive draws says of verdicts."""

from dataclasses import dataclass

import torch

from benchmarks.adaptive import row
from dina_lrm.types import TIE_BAND, Comparison


@dataclass(frozen=True)
class Pairs:
    target: torch.Tensor
    prompt_of_pair: torch.Tensor


def comparisons(*probabilities):
    return [Comparison(p, (p, p), p - 0.5, 0.0, 0.0, TIE_BAND, decided=True, spent=4) for p in probabilities]


def test_verdicts_are_held_against_those_of_the_fixed_ensemble():
    view = Pairs(torch.ones(5), torch.arange(5))
    fixed = comparisons(0.9, 0.8, 0.1, 0.5, 0.52)
    found = comparisons(0.7, 0.54, 0.2, 0.51, 0.6)
    told = row(view, found, fixed)
    assert told["verdict of fixed %"].startswith("60.0 (")
    assert told["of its a / b / tie"] == "50.0 / 100.0 / 50.0"
    assert row(view, fixed, fixed)["verdict of fixed %"].startswith("100.0")
