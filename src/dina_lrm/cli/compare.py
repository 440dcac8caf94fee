"""`dina-lrm compare`: which of two pictures is preferred, and how surely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import (
    DEFAULT_TIE_BAND,
    AdaptiveOption,
    AntitheticOption,
    BaseOption,
    CutPromptOption,
    DeviceOption,
    DrawsOption,
    Dtype,
    DtypeOption,
    EnsembleOption,
    FusionOption,
    FusionRule,
    JsonOption,
    ModelOption,
    PromptOption,
    RevisionOption,
    SeedOption,
    SigmaOption,
    TieBandOption,
    load_model,
    read_draws,
    read_sigmas,
    whole_prompt,
)
from dina_lrm.cli.output import print_json


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A picture.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    model: ModelOption,
    prompt: PromptOption,
    base: BaseOption = None,
    revision: RevisionOption = None,
    sigma: SigmaOption = None,
    ensemble: EnsembleOption = None,
    fusion: FusionOption = FusionRule.MEAN,
    draws: DrawsOption = None,
    adaptive: AdaptiveOption = None,
    error_rate: Annotated[
        float, typer.Option("--error-rate", metavar="P", help="How often --adaptive may differ from all its draws.")
    ] = 0.05,
    antithetic: AntitheticOption = False,
    tie_band: TieBandOption = DEFAULT_TIE_BAND,
    seed: SeedOption = 0,
    cut_prompt: CutPromptOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Probability that A is preferred to B, with its 95 % interval over noise."""
    levels = read_sigmas(sigma, ensemble)
    how_often = read_draws(draws, 4, adaptive, error_rate)
    from dina_lrm.scoring import open_image

    pictures = open_image(a), open_image(b)
    scorer = load_model(model, base, device, dtype, revision)
    with whole_prompt(cut_prompt):
        found = scorer.compare(
            prompt=prompt,
            a=pictures[0],
            b=pictures[1],
            sigmas=levels,
            draws=how_often,
            fusion=fusion.value,
            antithetic=antithetic,
            seed=seed,
            tie_band=tie_band,
        )
    if as_json:
        print_json(
            {
                "a": str(a),
                "b": str(b),
                "prompt": prompt,
                "probability": found.probability,
                "interval": list(found.interval),
                "margin": found.margin,
                "reward_a": found.reward_a,
                "reward_b": found.reward_b,
                "sigmas": list(levels),
                "draws": adaptive or how_often,
                "seed": seed,
                "model": model,
                "verdict": found.verdict,
                "tie_band": found.tie_band,
                "decided": found.decided,
                "spent": found.spent,
            }
        )
    else:
        low, high = found.interval
        verdict = {"a": "A is preferred", "b": "B is preferred", "tie": "a tie"}[found.verdict]
        unsure = "" if found.decided else ", undecided when the draws were spent"
        print(f"{verdict}{unsure} ({found.spent} noised pictures read)")
        print(f"P(A preferred to B) = {found.probability:.3f}, 95 % interval {low:.3f} to {high:.3f}")
        print(f"reward of A {found.reward_a:.4f}  {a}")
        print(f"reward of B {found.reward_b:.4f}  {b}")
