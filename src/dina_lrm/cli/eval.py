"""`dina-lrm eval`: a benchmark card of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dina_lrm.cli.options import (
    BaseOption,
    CutPromptOption,
    DeviceOption,
    DrawsOption,
    Dtype,
    DtypeOption,
    EnsembleOption,
    FusionRule,
    JsonOption,
    ModelOption,
    RevisionOption,
    SigmaOption,
    load_model,
    read_sigmas,
    whole_prompt,
)

if TYPE_CHECKING:
    from dina_lrm.evals import AccuracyEstimate, BenchmarkCard, TaskConfig


def evaluate(
    model: ModelOption,
    task: Annotated[
        str,
        typer.Option(
            "--task", metavar="NAME|FILE", help="emoji, emoji_unseen_style, ...; a task file; or a preference folder."
        ),
    ],
    split: Annotated[str | None, typer.Option("--split", help="Of the pairs (default: the task's).")] = None,
    sigma: SigmaOption = None,
    ensemble: EnsembleOption = None,
    fusion: Annotated[
        FusionRule | None, typer.Option("--fusion", help="How levels are joined (default: the task's).")
    ] = None,
    draws: DrawsOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the noise (default: the task's).")] = None,
    max_prompts: Annotated[
        int | None, typer.Option("--max-prompts", metavar="N", min=1, help="Only so many prompts.")
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, help="Noised pictures in one forward pass, at most.")
    ] = 64,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the card here as JSON, too.")] = None,
    base: BaseOption = None,
    revision: RevisionOption = None,
    cut_prompt: CutPromptOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled pairs: a card as a table or as JSON, accuracy under every convention for ties."""
    levels = None if sigma is None and ensemble is None else read_sigmas(sigma, ensemble)
    from dina_lrm.evals import find_task, run_task
    from dina_lrm.runtime.files import atomic_write

    changed = {"sigmas": levels, "fusion": None if fusion is None else fusion.value, "draws": draws}
    asked = _changed(find_task(task), {"split": split, "seed": seed}, changed)
    asked.open()  # missing pairs are told before a model is loaded
    scorer = load_model(model, base, device, dtype, revision)
    with whole_prompt(cut_prompt):
        card = run_task(scorer, asked, model, max_prompts, max_batch_size)
    if out is not None:
        with atomic_write(out) as file:
            file.write(card.model_dump_json(indent=1).encode() + b"\n")
    if as_json:
        print(card.model_dump_json())
    else:
        for line in table_lines(card):
            print(line)


def _changed(task: TaskConfig, values: Mapping[str, object], rule: Mapping[str, object]) -> TaskConfig:
    """The task with what the user said otherwise."""
    from dina_lrm.config import parse_config

    told = {name: value for name, value in values.items() if value is not None}
    told["rule"] = task.rule.model_dump() | {name: value for name, value in rule.items() if value is not None}
    return parse_config(type(task), task.model_dump() | told, "the options")


def table_lines(found: BenchmarkCard) -> Iterator[str]:
    """The card as text; accuracies in % with their 95 % intervals over prompts."""
    card, ties = found.card, found.ties
    yield f"{found.model} on {found.task.name}, {card.split}: {card.rule}, prompts {card.prompts_shown}, seed {card.seed}"
    yield f"{card.pairs} pairs of {card.prompts} prompts, {card.candidates} candidates, {card.candidates_per_second:.1f} a second"
    yield ""
    yield f"{'accuracy':18}{'':4}{_percent(card.accuracy)}"
    for kind, estimate in card.accuracy_by_kind.items():
        yield f"  {kind:16}{'':4}{_percent(estimate)}"
    if card.oracle_accuracy.pairs:
        yield f"{'against the oracle':18}{'':4}{_percent(card.oracle_accuracy)}"
        yield f"{'oracle on votes':18}{'':4}{_percent(card.ceiling)}"
        yield f"{'tau-b to oracle':18}{'':4}{_plain(card.kendall_tau)}"
    yield ""
    yield (
        f"ties: {100 * ties.vote_ties:.1f} % of the votes, {100 * ties.predicted_ties:.1f} % of the predictions; "
        "what they earn is convention"
    )
    yield f"{'convention':12}{'over pairs':>24}{'over prompts':>24}  used by"
    for name, row in ties.conventions.items():
        yield f"{name:12}{_percent(row.micro):>24}{_percent(row.per_prompt):>24}  {row.used_by}"
    yield f"{'a, b or tie':12}{_percent(ties.calibrated_ties.accuracy):>24}{'':24}  tie band fitted on the other half of the prompts"
    yield f"{'tau-b':12}{'':24}{_plain(ties.tau_b):>24}  votes and margins of each prompt's pairs"
    yield ""
    judged = card.calibration
    fitted = (
        f"fitted on {found.calibrated_on}" if found.calibrated_on else "as it was trained; `dina-lrm calibrate` fits it"
    )
    yield f"probabilities ({fitted})"
    yield (
        f"ECE {judged.ece:.4f} ({judged.ece_interval[0]:.4f} - {judged.ece_interval[1]:.4f}; the truth itself would show "
        f"{judged.ece_floor:.4f}), Brier {judged.brier.value:.4f}, NLL {judged.nll.value:.4f} (least possible "
        f"{judged.vote_entropy:.4f})"
    )


def _percent(estimate: AccuracyEstimate) -> str:
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} - {100 * estimate.high:.1f})"


def _plain(estimate: AccuracyEstimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} - {estimate.high:.3f})"
