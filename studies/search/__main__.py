"""One command: `python -m studies.search`. What is done is not done again, so it may be killed and started anew.

python -m studies.search           # everything, then the page
python -m studies.search --quick   # a minute: few prompts, few steps
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dina_lrm.runtime.files import atomic_write
from dina_lrm.worlds.locate import emoji_root
from studies.runs import fingerprint
from studies.search.live import BAND, FAMILIES, NOISE, Arm, Run, prices_of, run
from studies.search.page import write_page
from studies.search.pool import Emoji, Pool, World, held_out_prompts, sample_pool
from studies.search.settings import FULL, QUICK, REWARD, Budget
from studies.search.summary import choose, early_decision, estimate, ladder, live_rows, over_one

HERE = Path(__file__).parent


def pools(world: World, root: Path, prompts: dict[str, list[str]], budget: Budget) -> dict[str, Pool]:
    """One a split, sampled when first asked for of this reward, these prompts and sizes."""
    found = {}
    for split, asked in prompts.items():
        path = root / f"pool-{split}-{fingerprint(REWARD, asked, budget.steps, budget.pool)}.npz"
        if not path.is_file():
            sample_pool(world, asked, budget.steps, budget.pool).save(path)
        found[split] = Pool.load(path)
    return found


def live(
    world: World, root: Path, prompts: dict[str, list[str]], validation: Pool, budget: Budget
) -> list[tuple[Arm, Run, list[float]]]:
    """Of each family the arm that is best on validation: its run on test, and its gain over one sample on validation."""
    path = root / f"live-{fingerprint(REWARD, prompts, budget.steps, BAND, NOISE)}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def ran(arm: Arm, split: str) -> Run:
        key = f"{arm.label}, {split}"
        if key not in known:
            known[key] = asdict(run(world, arm, prompts[split], budget.steps))
            print(f"{key}: {np.mean(known[key]['utility']):.3f}", flush=True)
            with atomic_write(path) as file:
                file.write(json.dumps(known).encode())
        return Run(**known[key])

    found = []
    for arms in FAMILIES.values():
        tried = [ran(arm, "validation").utility for arm in arms]
        best = max(range(len(arms)), key=lambda place: float(np.mean(tried[place])))
        gain = estimate(over_one(tried[best], arms[best].start, validation))
        found.append((arms[best], ran(arms[best], "test"), gain))
    return found


def summarise(world: World, root: Path, budget: Budget) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        world: what samples, chooses and judges.
        root: folder of the study.
        budget: of it.
    """
    prompts = {split: held_out_prompts(split, getattr(budget, split)) for split in ("validation", "test")}
    sampled = pools(world, root, prompts, budget)
    validation, test = sampled["validation"], sampled["test"]
    prices = prices_of(world, prompts["validation"][0], budget.steps)
    return {
        "prompts": {split: len(asked) for split, asked in prompts.items()},
        "small": budget == QUICK,
        "steps": budget.steps,
        "pool": budget.pool,
        "read": round(prices.read, 3),
        "early": early_decision(test),
        "ladder": ladder(test, budget.subsets),
        "choices": choose(validation, test, budget, prices.read),
        "second look": choose(validation, test, budget, prices.read, readings=("clean",)),
        "live": live_rows(test, live(world, root, prompts, validation, budget), prices, budget),
    }


def main() -> None:
    """Read the command line and do what is left to do."""
    parser = argparse.ArgumentParser(prog="python -m studies.search", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of what is sampled (default: runs/study-search)")
    parser.add_argument("--quick", action="store_true", help="a small version, in a folder of its own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    root = asked.out or Path("runs/study-search-quick" if asked.quick else "runs/study-search")
    results = summarise(Emoji(REWARD, emoji_root()), root, QUICK if asked.quick else FULL)
    where = root / "results.json" if asked.quick else HERE / "results" / "search.json"
    with atomic_write(where) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    print(write_page(results, root / "page" if asked.quick else HERE / "page"))


if __name__ == "__main__":
    main()
