"""Evaluation of the demo's models: the rows of the table, the curve over sigma, the rankings."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dina_lrm.data import PreferenceData
from dina_lrm.demo.models import Models
from dina_lrm.demo.settings import CONTROLS, HEADLINE, RULES, SPLITS, Budget
from dina_lrm.evals import (
    AccuracyEstimate,
    ScoredSplit,
    ScoringRule,
    SigmaProfile,
    SplitView,
    accuracy_gap,
    make_card,
    prompt_seed,
    score_views,
    sigma_profile,
)
from dina_lrm.evals.rules import Prompts
from dina_lrm.metrics import clustered_mean
from dina_lrm.report import BestOf, RankedPicture, RankedPrompt, SamplePicture, TableRow
from dina_lrm.scoring import RewardModel

__all__ = [
    "Ranked",
    "choose_samples",
    "measure_profile",
    "measure_table",
    "preview_png",
    "rank_candidates",
    "table_lines",
]


def measure_table(models: Models, data: PreferenceData, budget: Budget, seed: int) -> tuple[TableRow, ...]:
    """Every rule and every control on every split, and how far each lies behind the headline rule."""
    views = {split: SplitView.of(data, split, budget.max_prompts) for split in SPLITS}

    def scored(run: str, rule: ScoringRule, prompts: Prompts) -> dict[str, ScoredSplit]:
        found = score_views(models[run], data, list(views.values()), rule, prompts, seed)
        return dict(zip(views, found, strict=True))

    head = scored("main", RULES[HEADLINE][1], "own")

    def row(name: str, run: str, found: dict[str, ScoredSplit], **words: str) -> TableRow:
        return TableRow.model_validate(
            {
                "name": name,
                "cards": {split: make_card(one) for split, one in found.items()},
                "gap": {} if found is head else {split: accuracy_gap(head[split], one) for split, one in found.items()},
                **words,
            }
        )

    rules = (
        row(name, "main", head if name == HEADLINE else scored("main", rule, "own"), label=label, group="model")
        for name, (label, rule) in RULES.items()
    )
    controls = (
        row(
            name,
            control.run,
            scored(control.run, RULES[HEADLINE][1], control.prompts),
            label=control.label,
            note=control.note,
            group="control",
        )
        for name, control in CONTROLS.items()
    )
    return (*rules, *controls)


def measure_profile(model: RewardModel, data: PreferenceData, budget: Budget, seed: int) -> SigmaProfile:
    """One draw at each level, on test pairs."""
    return sigma_profile(model, data, SplitView.of(data, "test", budget.max_prompts), budget.profile_sigmas, seed)


def table_lines(table: tuple[TableRow, ...]) -> list[str]:
    """The table as text: accuracy in % with its 95 % interval."""

    def line(label: str, cells: list[str]) -> str:
        return f"      {label:34}" + "".join(f"{cell:>22}" for cell in cells)

    def cells(estimates: list[AccuracyEstimate]) -> list[str]:
        return [f"{100 * e.value:.1f} ({100 * e.low:.1f} - {100 * e.high:.1f})" for e in estimates]

    first = table[0].cards
    return [
        line("accuracy in %, 95 % intervals", [split.replace("_", " ") for split in first]),
        *(line(row.label, cells([card.accuracy for card in row.cards.values()])) for row in table),
        line("Ceiling: oracle against the votes", cells([card.ceiling for card in first.values()])),
    ]


@dataclass(frozen=True)
class Ranked:
    """Rankings to be shown, and the gain of choosing by reward over all prompts of the test split.

    Attributes:
        shown: the first prompts, with the generator's own pictures, then the same with candidates of every origin.
        best_of: among the generator's own pictures, then among candidates of every origin; what the split has of both.
    """

    shown: tuple[RankedPrompt, ...]
    best_of: tuple[BestOf, ...]


Row = dict[str, Any]


def _candidates_by_prompt(data: PreferenceData, prompts: Sequence[str]) -> dict[str, list[Row]]:
    """All candidates of each prompt, in the order of the folder."""
    found: dict[str, list[Row]] = {prompt: [] for prompt in prompts}
    table = data.candidates.select(["candidate", "prompt", "origin", "latents_row", "oracle_utility"])
    for row in table.to_pylist():
        if row["prompt"] in found:
            found[row["prompt"]].append(row)
    return found


def _is_generated(row: Row) -> bool:
    return (row["origin"] or {}).get("kind") == "generator"


def rank_candidates(model: RewardModel, data: PreferenceData, budget: Budget, seed: int) -> Ranked:
    """Order candidates of test prompts by reward, asked like the headline row."""
    view = SplitView.of(data, "test", budget.max_prompts)
    pools = _candidates_by_prompt(data, view.prompts)
    ranked = [_rank_pool(model, data, prompt, pool, seed) for prompt, pool in pools.items()]
    by_pool = {
        "of the generator": [[row for row in pool if _is_generated(row)][: budget.candidates] for pool in ranked],
        "of every origin": [_some(pool, budget.candidates, seed + i) for i, pool in enumerate(ranked)],
    }
    gains = [_best_of(pool, rows) for pool, rows in by_pool.items()]
    return Ranked(
        tuple(
            _as_ranking(prompt, pool, rows)
            for pool, every in by_pool.items()
            for prompt, rows in list(zip(pools, every, strict=True))[: budget.rankings]
            if len(rows) > 1
        ),
        tuple(gain for gain in gains if gain is not None),
    )


@torch.no_grad()
def _rank_pool(model: RewardModel, data: PreferenceData, prompt: str, pool: list[Row], seed: int) -> list[Row]:
    """The candidates, best first, each with its `reward`; all meet the same noise."""
    rule = RULES[HEADLINE][1]
    reward = model.score(
        prompts=[prompt],
        latents=data.latents([row["latents_row"] for row in pool]),
        sigmas=rule.sigmas,
        fusion=rule.fusion,
        seed=prompt_seed(prompt, seed),
    ).reward
    rows = [{**row, "reward": value} for row, value in zip(pool, reward.tolist(), strict=True)]
    return sorted(rows, key=lambda row: -float(row["reward"]))


def _some(ranked: list[Row], count: int, seed: int) -> list[Row]:
    """So many of them at random, in their order."""
    picked = torch.randperm(len(ranked), generator=torch.Generator().manual_seed(seed))[:count]
    return [ranked[i] for i in sorted(picked.tolist())]


def _as_ranking(prompt: str, pool: str, ranked: list[Row]) -> RankedPrompt:
    truth = [_truth(row) for row in ranked]
    known = not any(math.isnan(value) for value in truth)
    return RankedPrompt(
        prompt=prompt,
        pool=pool,
        pictures=tuple(
            RankedPicture(
                picture=row["candidate"],
                origin=origin_words(row["origin"]),
                reward=row["reward"],
                oracle_utility=value,
                oracle_rank=1 + sum(other > value for other in truth) if known else None,
            )
            for row, value in zip(ranked, truth, strict=True)
        ),
    )


def _truth(row: Row) -> float:
    return math.nan if row["oracle_utility"] is None else float(row["oracle_utility"])


def origin_words(origin: dict[str, str] | None) -> str:
    """Where a candidate came from, in few words."""
    if origin is None:
        return ""
    kind, detail = origin["kind"] or "", origin["detail"] or ""
    if kind == "generator":
        return f"drawn, {steps}" if (steps := detail.partition(",")[0]) else "drawn"
    if kind == "real":
        wrong = {"style": origin["style"], "near": origin["concept"], "far": origin["concept"]}.get(detail)
        return f"real: {wrong}" if wrong else "real"
    return detail or kind


def _best_of(pool: str, ranked: Sequence[list[Row]]) -> BestOf | None:
    """What choosing gains, over the prompts that have the most candidates; None without an oracle or a choice."""
    n = max((len(rows) for rows in ranked), default=0)
    whole = [[_truth(row) for row in rows] for rows in ranked if len(rows) == n]
    truth = torch.tensor(whole, dtype=torch.float64)
    if n < 2 or truth.isnan().any():
        return None

    def mean(values: torch.Tensor) -> AccuracyEstimate:
        return AccuracyEstimate.of(clustered_mean(values, torch.arange(len(values))))

    best, average, worst = mean(truth[:, 0]), mean(truth.mean(dim=1)), mean(truth[:, -1])
    oracle_best = mean(truth.max(dim=1).values)
    possible = oracle_best.value - average.value
    return BestOf(
        pool=pool,
        n=n,
        prompts=len(truth),
        best=best,
        average=average,
        worst=worst,
        oracle_best=oracle_best,
        captured=(best.value - average.value) / possible if possible > 0 else math.nan,
    )


def choose_samples(data: PreferenceData, budget: Budget) -> tuple[SamplePicture, ...]:
    """A picture of the generator for each of the first test prompts: the one with the most steps, whatever it looks like."""
    pools = _candidates_by_prompt(data, SplitView.of(data, "test").prompts)
    drawn = {prompt: [row for row in pool if _is_generated(row)] for prompt, pool in pools.items()}

    def steps(row: Row) -> int:
        first = (row["origin"]["detail"] or "").split(" ")[0]
        return int(first) if first.isdigit() else 0

    best = [(prompt, max(rows, key=steps)["candidate"]) for prompt, rows in drawn.items() if rows]
    return tuple(SamplePicture(prompt=prompt, picture=name) for prompt, name in best[: budget.samples])


def preview_png(data: PreferenceData, candidate: str) -> bytes:
    """A candidate's preview as PNG bytes."""
    file = io.BytesIO()
    data.preview(candidate).save(file, "PNG", optimize=True)
    return file.getvalue()
