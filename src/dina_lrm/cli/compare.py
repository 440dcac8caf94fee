"""`dina-lrm compare`: which of two pictures is preferred, and how surely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import (
    BaseOption,
    CutPromptOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EnsembleOption,
    JsonOption,
    ModelOption,
    PromptOption,
    RevisionOption,
    SeedOption,
    SigmaOption,
    load_model,
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
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Noise tensors a level.")] = 4,
    seed: SeedOption = 0,
    cut_prompt: CutPromptOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Probability that A is preferred to B, with its 95 % interval over noise."""
    levels = read_sigmas(sigma, ensemble)
    from dina_lrm.scoring import open_image

    pictures = open_image(a), open_image(b)
    scorer = load_model(model, base, device, dtype, revision)
    with whole_prompt(cut_prompt):
        found = scorer.compare(prompt=prompt, a=pictures[0], b=pictures[1], sigmas=levels, draws=draws, seed=seed)
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
                "draws": draws,
                "seed": seed,
                "model": model,
            }
        )
    else:
        low, high = found.interval
        print(f"P(A preferred to B) = {found.probability:.3f}, 95 % interval {low:.3f} to {high:.3f}")
        print(f"reward of A {found.reward_a:.4f}  {a}")
        print(f"reward of B {found.reward_b:.4f}  {b}")
