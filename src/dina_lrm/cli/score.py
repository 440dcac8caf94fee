"""`dina-lrm score`: rewards of pictures under a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dina_lrm.cli.options import (
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
    load_model,
    read_draws,
    read_sigmas,
    whole_prompt,
)
from dina_lrm.cli.output import print_json

BATCH_SIZE = 16


def score(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to score.")],
    model: ModelOption,
    prompt: PromptOption,
    base: BaseOption = None,
    revision: RevisionOption = None,
    sigma: SigmaOption = None,
    ensemble: EnsembleOption = None,
    fusion: FusionOption = FusionRule.MEAN,
    draws: DrawsOption = None,
    adaptive: AdaptiveOption = None,
    standard_error: Annotated[
        float | None, typer.Option("--standard-error", metavar="E", help="What --adaptive is to reach, in utility.")
    ] = None,
    antithetic: AntitheticOption = False,
    seed: SeedOption = 0,
    cut_prompt: CutPromptOption = False,
    max_batch_size: Annotated[
        int | None,
        typer.Option("--max-batch-size", metavar="N", min=1, help="Noised pictures in one forward pass, at most."),
    ] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Score pictures under a prompt: a line each, reward and standard error."""
    levels = read_sigmas(sigma, ensemble)
    how_often = read_draws(draws, 1, adaptive, standard_error=standard_error)
    import torch

    from dina_lrm.scoring import open_image

    for path in images:  # a bad picture is told before a model is loaded
        open_image(path)
    scorer = load_model(model, base, device, dtype, revision)
    with whole_prompt(cut_prompt):
        conditioning = scorer.encode_prompts([prompt])
    for start in range(0, len(images), BATCH_SIZE):
        paths = images[start : start + BATCH_SIZE]
        with torch.no_grad():
            answer = scorer.score(
                images=[open_image(path) for path in paths],
                conditioning=conditioning,
                sigmas=levels,
                draws=how_often,
                fusion=fusion.value,
                antithetic=antithetic,
                seed=seed,
                max_batch_size=max_batch_size,
            )
        numbers = (answer.reward, answer.utility, answer.utility_std, answer.standard_error, answer.spent)
        used = [round(level, 6) for level in answer.sigmas.tolist()]
        for path, reward, utility, utility_std, error, spent in zip(
            paths, *(values.tolist() for values in numbers), strict=True
        ):
            if as_json:
                print_json(
                    {
                        "image": str(path),
                        "prompt": prompt,
                        "reward": reward,
                        "utility": utility,
                        "utility_std": utility_std,
                        "standard_error": error,
                        "sigmas": used,
                        "seed": seed,
                        "model": model,
                        "spent": spent,
                    }
                )
            else:
                print(f"{reward:9.4f} +- {error:.4f}  {path}", flush=True)
