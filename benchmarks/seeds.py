"""Is pretraining what helps, and is attention? Three arms, three seeds, the demo's budget, the test split.

    query       the paper's head on the pretrained backbone
    random      the same on random weights: what diffusion pretraining brings
    mean_pool   the baseline head on the pretrained backbone: what the head brings

Each arm is asked by the demo's headline rule. An arm's interval is over prompts, of the mean over its seeds; the gap to
the first arm is taken pair by pair. Run whole with `python -m benchmarks.seeds`; a finished model is not trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dina_lrm.data import PreferenceData
from dina_lrm.demo.models import Models
from dina_lrm.demo.settings import FAST, FULL, HEADLINE, RULES, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.evals import ScoredSplit, make_card, score_split
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.metrics import clustered_mean, pair_credit
from dina_lrm.worlds.locate import emoji_root

ARMS = ("query", "random", "mean_pool")


def main(quick: bool = True, out: Path = Path("runs/seeds"), num_seeds: int = 3) -> list[dict[str, Any]]:
    """A row an arm; quick is one seed at the budget of `dina-lrm demo --fast`."""
    world = emoji_root()
    data = PreferenceData.open(world / "preferences")
    budget = FAST if quick else replace(FULL, validate_every=0)
    seeds = range(1 if quick else num_seeds)
    scored = {arm: [_score(world, data, out, arm, budget, seed) for seed in seeds] for arm in ARMS}
    return [_row(arm, scored[arm], scored["query"]) for arm in ARMS]


def _score(world: Path, data: PreferenceData, out: Path, arm: str, budget: Any, seed: int) -> ScoredSplit:
    folder = out / f"{budget.num_steps}-steps" / f"{arm}-{seed}"
    run = RUNS["random" if arm == "random" else "main"]
    config = train_config(world, folder, run, budget, num_blocks(world), seed)
    if arm == "mean_pool":
        config = config.model_copy(update={"head": MeanPoolHeadConfig()})
    model = Models({arm: config}, quiet=True)[arm]
    scored = score_split(model, data, "test", RULES[HEADLINE][1], max_prompts=budget.max_prompts)
    card = make_card(scored)
    print(
        f"{arm:10} seed {seed}: accuracy {card.accuracy.value:.3f}, oracle {card.oracle_accuracy.value:.3f}, "
        f"ceiling {card.ceiling.value:.3f}, ECE {card.calibration.ece:.3f}",
        flush=True,
    )
    return scored


def _row(arm: str, scored: list[ScoredSplit], reference: list[ScoredSplit]) -> dict[str, Any]:
    view = scored[0].view
    oracle = (1 + torch.sign(view.margin(view.oracle))) / 2

    def estimate(credits: list[torch.Tensor]) -> str:
        found = clustered_mean(torch.stack(credits).mean(dim=0), view.prompt_of_pair)
        return f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"

    credit = [pair_credit(one.margin, view.target).credit for one in scored]
    gap = [mine - pair_credit(one.margin, view.target).credit for mine, one in zip(credit, reference, strict=True)]
    return {
        "arm": arm,
        "seeds": len(scored),
        "accuracy %": estimate(credit),
        "each seed": ", ".join(f"{100 * float(c.nanmean()):.1f}" for c in credit),
        "oracle order %": estimate([pair_credit(one.margin, oracle).credit for one in scored]),
        "ceiling %": estimate([pair_credit(view.margin(view.oracle), view.target).credit]),
        "gap to query": "" if arm == "query" else estimate(gap),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for row in main(arguments.quick, arguments.out, arguments.seeds):
        print(row)
