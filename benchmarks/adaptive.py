"""Does drawing until it is decided save passes, at the accuracy of all the draws? Pairs of the emoji world's test split.

Each pair is a comparison of its own, both candidates under one noise, the pair's prompt seeding it. An adaptive
comparison may draw as often as the fixed ensemble that it is held against, and stops when the fixed ensemble's answer is
known but for its error rate, or the two are surely a tie. States that several pairs share are read once and remembered, which
changes no number: passes are counted as each comparison would pay for them. With calibration it knows beforehand how margins move
over noise (measured on the validation split); without, it must see that first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.data import PreferenceData
from dina_lrm.demo.models import Models
from dina_lrm.demo.settings import FAST, FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.evals import CalibrationSettings, SplitView, calibrate, prompt_seed
from dina_lrm.metrics import clustered_mean, pair_credit
from dina_lrm.noise import Adaptive, NoiseEnsemble
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Reading, answer_all
from dina_lrm.types import TIE_BAND, Comparison, Conditioning
from dina_lrm.worlds.locate import emoji_root

LEVELS = {"sigma 0.4": (0.4,), "sigma 0.2, 0.5, 0.7": (0.2, 0.5, 0.7)}
PASSES = 9  # states a candidate in the whole ensemble


@dataclass(frozen=True)
class Arm:
    """One way to ask for a pair."""

    name: str
    draws: int | Adaptive
    calibrated: bool = False
    antithetic: bool = False


def arms(whole: int) -> list[Arm]:
    """The fixed ensemble first."""
    return [
        Arm(f"{whole} draws", whole),
        Arm("1 draw", 1),
        Arm("adaptive, 5 %", Adaptive(whole)),
        Arm("adaptive, 5 %, calibrated", Adaptive(whole), calibrated=True),
        Arm("adaptive, 10 %, calibrated", Adaptive(whole, 0.1), calibrated=True),
        Arm("adaptive, 1 %, calibrated", Adaptive(whole, 0.01), calibrated=True),
    ]


def main(quick: bool = True, out: Path = Path("runs/seeds")) -> list[dict[str, Any]]:
    """A row an arm and a set of levels; quick takes few prompts and a model of a minute."""
    world = emoji_root()
    data = PreferenceData.open(world / "preferences")
    budget = FAST if quick else replace(FULL, validate_every=0)
    config = train_config(
        world, out / f"{budget.num_steps}-steps" / "query-0", RUNS["main"], budget, num_blocks(world), 0
    )
    model = Models({"query": config}, quiet=True)["query"]
    calibrated = None
    if not quick:  # the votes do not follow a model of a minute closely enough to be fitted
        settings = CalibrationSettings(sigmas=(0.2, 0.4, 0.5, 0.7))
        calibrated = model.with_calibration(calibrate(model, data, settings, quiet=True).calibration)
    view = SplitView.of(data, "test", 8 if quick else None)
    conditioning = model.encode_prompts(list(view.prompts))
    rows = []
    for name, sigmas in LEVELS.items():
        memory: dict[bytes, Tensor] = {}
        whole = PASSES // len(sigmas)
        fixed: dict[bool, list[Comparison]] = {}
        for arm in arms(whole):
            ensemble = NoiseEnsemble(sigmas, arm.draws, antithetic=arm.antithetic)
            asked = calibrated if arm.calibrated else model
            if asked is None:
                continue
            if arm.calibrated not in fixed:  # a verdict is a matter of the law that the model is calibrated to
                fixed[arm.calibrated] = ask(asked, data, view, conditioning, NoiseEnsemble(sigmas, whole), memory)
            found = ask(asked, data, view, conditioning, ensemble, memory)
            rows.append({"levels": name, "asked": arm.name, **row(view, found, fixed[arm.calibrated])})
    return rows


def ask(
    model: RewardModel,
    data: PreferenceData,
    view: SplitView,
    conditioning: Conditioning,
    ensemble: NoiseEnsemble,
    memory: dict[bytes, Tensor],
) -> list[Comparison]:
    """Every pair of a split, chosen against rejected."""
    latents = data.latents(view.rows)
    questions = []
    for chosen, rejected in zip(view.chosen.tolist(), view.rejected.tolist(), strict=True):
        prompt = int(view.prompt_of[chosen])
        pair = model.candidates(
            conditioning=conditioning[prompt : prompt + 1],
            latents=latents[[chosen, rejected]],
            seed=prompt_seed(view.prompts[prompt], 0),
        )
        questions.append(model.asker.compare(pair, ensemble, TIE_BAND))

    def read(reading: Reading) -> Tensor:
        keys = [state.numpy().tobytes() for state in reading.state.noised_latents]
        new = {key: place for place, key in enumerate(keys) if key not in memory}
        if new:
            places = list(new.values())
            fresh = replace(reading, state=reading.state[torch.tensor(places)], rows=reading.rows[places])
            memory.update(zip(new, model.read(fresh, 128), strict=True))
        return torch.stack([memory[key] for key in keys])

    with torch.no_grad():
        return answer_all(questions, read, 256)


def row(view: SplitView, found: list[Comparison], fixed: list[Comparison]) -> dict[str, Any]:
    """Accuracy against the votes, passes, and agreement with the whole ensemble."""

    def estimate(values: Tensor) -> str:
        mean = clustered_mean(values, view.prompt_of_pair)
        return f"{100 * mean.value:.1f} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"

    margin = torch.tensor([one.margin for one in found])
    whole = torch.tensor([one.margin for one in fixed])
    spent = torch.tensor([one.spent for one in found], dtype=torch.float64)
    credit, other = pair_credit(margin, view.target).credit, pair_credit(whole, view.target).credit
    decided = torch.tensor([one.decided for one in found])
    tie = torch.tensor([one.verdict == "tie" for one in found])
    alike = torch.tensor([one.verdict == other.verdict for one, other in zip(found, fixed, strict=True)]).double()
    by_verdict = [alike[[one.verdict == verdict for one in fixed]] for verdict in ("a", "b", "tie")]
    return {
        "pairs": len(found),
        "accuracy %": estimate(credit),
        "less than fixed, points": estimate(other - credit),
        "passes a candidate": float(spent.mean() / 2),
        "of fixed": float(spent.mean() / torch.tensor([one.spent for one in fixed], dtype=torch.float64).mean()),
        "decided %": 100 * float(decided.double().mean()),
        "ties %": 100 * float(tie.double().mean()),
        "verdict of fixed %": estimate(alike),
        "of its a / b / tie": " / ".join(f"{100 * float(one.mean()):.1f}" if len(one) else "-" for one in by_verdict),
        "sign differs from fixed, no tie %": 100 * float(((margin.sign() != whole.sign()) & ~tie).double().mean()),
    }
