"""One command: `python -m studies.hacking`. What is done is not done again, so it may be killed and started anew.

python -m studies.hacking             # everything, then the page
python -m studies.hacking --quick     # minutes: one seed, few updates, few prompts
python -m studies.hacking --page      # no runs: the page from what is there
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from dina_lrm.runtime.files import atomic_write
from studies.hacking.grids import grid_rows
from studies.hacking.page import write_page
from studies.hacking.settings import ARMS, FULL, QUICK, Budget, config_of
from studies.hacking.summary import summarise
from studies.runs import align_once, train_once

HERE = Path(__file__).parent


def run_all(root: Path, budget: Budget) -> None:
    """Every run that is not finished, a seed of each arm at a time."""
    for seed in budget.seeds:
        for arm in ARMS:
            align_once(config_of(root, arm, seed, budget), root / ARMS[arm].reward)


def main() -> None:
    """Read the command line and do what is left to do."""
    parser = argparse.ArgumentParser(prog="python -m studies.hacking", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of runs (default: runs/study-hacking)")
    parser.add_argument("--quick", action="store_true", help="a small version, in a folder of its own")
    parser.add_argument("--page", action="store_true", help="only the page, from the runs that are finished")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    root = chosen.out or Path("runs/study-hacking-quick" if chosen.quick else "runs/study-hacking")
    budget = QUICK if chosen.quick else FULL
    if not chosen.page:
        train_once(root / "dina-lrm", "emoji_thurstone", chosen.quick)
        run_all(root, budget)
    results = summarise(root, budget) | {"grids": grid_rows(), "small": chosen.quick}
    where = root / "results.json" if chosen.quick else HERE / "results" / "hacking.json"
    with atomic_write(where) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    print(write_page(results, root, root / "page" if chosen.quick else HERE / "page"))


if __name__ == "__main__":
    main()
