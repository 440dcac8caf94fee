"""One command: `python -m studies.alignment`. What is done is not done again, so it may be killed and started anew.

python -m studies.alignment                      # everything, then the page
python -m studies.alignment --quick              # minutes: one seed, few updates, few prompts
python -m studies.alignment --seeds 0 --no-page  # a part, beside another process
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dina_lrm.alignment import LatentRewardConfig
from dina_lrm.data import PreferenceData
from dina_lrm.demo.align_settings import LEVELS
from dina_lrm.runtime.files import atomic_write
from dina_lrm.worlds.locate import emoji_root
from studies.alignment.costs import measure_costs
from studies.alignment.page import write_page
from studies.alignment.rival import SIZES
from studies.alignment.rival_report import report_once
from studies.alignment.rival_training import train_rivals
from studies.alignment.scales import measure_scales
from studies.alignment.second_round import climb, second_round, standing
from studies.alignment.settings import ALGORITHMS, FULL, QUICK, REWARDS, Budget, config_of, rival_config
from studies.alignment.summary import summarise
from studies.runs import align_once, fingerprint, train_once

RESULTS = Path(__file__).parent / "results" / "alignment.json"


def train_rewards(root: Path, quick: bool, rivals: bool) -> None:
    """A reward of each kind from the first round; the second round of preferences, on what fooled either; then all rewards from
    the two rounds together.
    """
    first = train_once(root / "first", "emoji_thurstone", quick)
    train_rivals(root / "first-rival", emoji_root() / "preferences", ["small"], quick)
    adapters = [
        *climb(root / "fooled" / "latent", LatentRewardConfig(model=str(first), sigmas=LEVELS))[1:],
        *climb(root / "fooled" / "pixels", rival_config(root / "first-rival" / "rival-small"))[1:],
    ]
    second_round(root / "preferences", adapters, 12 if quick else 450)
    train_once(root / "reward", "emoji_reward", quick, f"data={root / 'preferences'}")
    if rivals:
        train_rivals(root, root / "preferences", list(SIZES), quick)
        measure_scales(root, 8 if quick else 256)


def run_all(root: Path, budget: Budget, arms: Iterable[str]) -> None:
    """Every run that is not finished."""
    for seed in budget.seeds:
        for arm in arms:
            for reward in budget.rewards:
                align_once(config_of(root, arm, reward, seed, budget), REWARDS[reward].folder(root))


def costs_once(root: Path, budget: Budget, arms: Iterable[str]) -> dict[str, Any]:
    """Of each arm, measured when first asked for under these settings and weights."""
    path = root / "costs.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    weights = [REWARDS[reward].folder(root) for reward in budget.rewards]
    for arm in arms:
        of = fingerprint(ALGORITHMS[arm], budget, *weights)
        if known.get(arm, {}).get("of") != of:
            known[arm] = {"of": of, "costs": measure_costs(root, [arm], budget)[arm]}
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=1).encode())
    return {arm: known[arm]["costs"] for arm in arms}


def main() -> None:
    """Read the command line and do what is left to do."""
    parser = argparse.ArgumentParser(prog="python -m studies.alignment", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of runs (default: runs/study-alignment)")
    parser.add_argument("--quick", action="store_true", help="a small version, in a folder of its own")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--arms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS), help="only these")
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), help="only these")
    parser.add_argument("--no-page", action="store_true", help="stop after the runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    root = chosen.out or Path("runs/study-alignment-quick" if chosen.quick else "runs/study-alignment")
    budget = QUICK if chosen.quick else FULL
    if chosen.seeds:
        budget = replace(budget, seeds=tuple(chosen.seeds))
    if chosen.rewards:
        budget = replace(budget, rewards=tuple(chosen.rewards))
    train_rewards(root, chosen.quick, rivals=budget.rewards != ("latent",))
    run_all(root, budget, chosen.arms)
    if chosen.no_page:
        return
    results = summarise(root, budget, costs_once(root, budget, chosen.arms))
    results["second_round"] = standing(PreferenceData.open(root / "preferences"))
    results["rewards"] = report_once(root, root / "preferences", root / "reward" / "model")
    where = root / "results.json" if chosen.quick else RESULTS
    with atomic_write(where) as file:
        file.write(json.dumps(results, indent=1).encode())
    print(write_page(results, root, budget, where.parent if chosen.quick else Path(__file__).parent / "page"))


if __name__ == "__main__":
    main()
