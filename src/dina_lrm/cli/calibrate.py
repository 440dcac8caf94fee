"""`dina-lrm calibrate`: fit what a model's numbers mean to held-out votes, and save it with the model."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dina_lrm.cli.options import (
    BaseOption,
    CutPromptOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelOption,
    RevisionOption,
    SeedOption,
    load_model,
    read_levels,
    whole_prompt,
)
from dina_lrm.cli.output import print_json
from dina_lrm.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from dina_lrm.checkpoint import CalibrationConfig
    from dina_lrm.evals import CalibrationReport

CARD, DIAGRAM = "calibration.json", "reliability.png"


class RewardMap(StrEnum):
    """What a reward is."""

    AFFINE = "affine"
    LOGISTIC = "logistic"


def calibrate(
    model: ModelOption,
    pairs: Annotated[
        Path, typer.Option("--pairs", metavar="SHARDS", help="Preference folder, of the model's own latents.")
    ],
    split: Annotated[str, typer.Option("--split", help="Pairs that the model has not learned from.")] = "validation",
    sigmas: Annotated[
        str | None, typer.Option("--sigmas", metavar="S,S,...", help="Levels (default: 0.05, 0.1, 0.2, ... 0.9).")
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", metavar="N", min=1, help="Of noise at every level; adaptive tests need 4 or more.")
    ] = 4,
    kind: Annotated[
        RewardMap,
        typer.Option(
            "--kind", help="affine: mean 0, deviation 1 over the candidates; logistic: P(better than one of them)."
        ),
    ] = RewardMap.AFFINE,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write a calibrated copy here instead of into the model."),
    ] = None,
    base: BaseOption = None,
    revision: RevisionOption = None,
    seed: SeedOption = 0,
    max_prompts: Annotated[
        int | None, typer.Option("--max-prompts", metavar="N", min=1, help="Use only so many prompts.")
    ] = None,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, help="Noised pictures in one forward pass, at most.")
    ] = 64,
    cut_prompt: CutPromptOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Fit and save a calibration: what a reward means, and how probable a preference is, at every noise level."""
    target = _target(model, out)
    work = target.parent / f".{target.name}.calibrating"
    from dina_lrm.data import PreferenceData
    from dina_lrm.evals import CalibrationSettings, calibrate
    from dina_lrm.runtime.parts import Parts

    chosen = {} if sigmas is None else {"sigmas": read_levels("--sigmas", sigmas)}
    settings = CalibrationSettings(
        split=split,
        draws=draws,
        kind=kind.value,
        seed=seed,
        max_prompts=max_prompts,
        max_batch_size=max_batch_size,
        **chosen,
    )
    data = PreferenceData.open(pairs)
    scorer = load_model(model, base, device, dtype, revision)
    with whole_prompt(cut_prompt):
        report = calibrate(scorer, data, settings, model, work)
    _save(report, model, target)
    Parts(work).remove()  # not before: what follows the passes can fail too
    if as_json:
        print_json({"model": model, "out": str(target), **report.calibration.model_dump(mode="json")})
    else:
        for line in table_lines(report.calibration):
            print(line)
        print(target)
        print(verdict_line(report))


def _target(model: str, out: Path | None) -> Path:
    """The folder that the calibration goes to, told before hours of work.

    Raises:
        CheckpointError: a model that cannot be written to, and no other folder.
    """
    from dina_lrm.checkpoint import is_published, refuse_place

    local = Path(model).is_dir()
    if out is not None and not (local and out.resolve() == Path(model).resolve()):
        refuse_place(Path(model) if local else None, out)
        return out.resolve()
    if not local:
        raise CheckpointError(f"model {model!r} lies on the hub, where nothing is written; name a folder with --out")
    if is_published(model):
        raise CheckpointError(
            f"model {model!r} has the published layout, which keeps no calibration; name a folder for a copy with --out"
        )
    return Path(model).resolve()


def _save(report: CalibrationReport, model: str, target: Path) -> None:
    """The calibration into the model, its card and diagrams beside it."""
    from dina_lrm.checkpoint import calibrated_copy, save_calibration
    from dina_lrm.runtime.files import atomic_write

    if Path(model).is_dir() and target == Path(model).resolve():
        save_calibration(target, report.calibration)
    else:
        calibrated_copy(model, target, report.calibration)
    with atomic_write(target / CARD) as file:
        file.write(report.model_dump_json(indent=1).encode() + b"\n")
    from dina_lrm.report import write_reliability

    try:
        write_reliability(report, target / DIAGRAM)
    except InputError as error:
        (target / DIAGRAM).unlink(missing_ok=True)  # of an earlier calibration
        print(f"no {DIAGRAM}: {error}", file=sys.stderr)


def table_lines(calibration: CalibrationConfig) -> list[str]:
    """What was fitted and how well it does, as text: before to after, on prompts that the fit has not seen."""
    lines = [f"fitted on {calibration.fitted_on}: {calibration.pairs} pairs of {calibration.prompts} prompts"]
    law = calibration.parameters
    if law is not None:
        lines.append(
            f"k = {law.scale:.3g} +- {law.scale_error:.2g}, clean variance = {law.min_variance:.3g} +- "
            f"{law.min_variance_error:.2g}; used is the variance of each level"
        )
    variance = {level.sigma: level.deviation**2 / 2 for level in calibration.levels}
    lines.append(f"{'':32}{'variance':>9}  {'ECE':>16}  {'(truth)':>7}  {'Brier':>16}  {'NLL':>16}")
    for row in calibration.quality:
        alone = len(row.sigmas) == 1 and row.draws == 1
        before = row.before
        after = dict.fromkeys(("ece", "brier", "nll"), "-")
        after |= {} if row.after is None else {name: f"{getattr(row.after, name):.4f}" for name in after}
        lines.append(
            f"{row.label:32}{format(variance[row.sigmas[0]], '.3g') if alone else '':>9}"
            f"  {before.ece:.4f} -> {after['ece']:6}  {row.ece_floor:7.4f}"
            f"  {before.brier:.4f} -> {after['brier']:6}  {before.nll:.4f} -> {after['nll']:6}"
        )
    if calibration.not_judged is not None:
        lines.append(f"not judged after the fit: {calibration.not_judged}")
    return lines


def verdict_line(report: CalibrationReport) -> str:
    """Whether the fit tells votes better than the law that the model was trained under, on prompts that it has not seen."""
    change = report.nll_change
    rows = [(row.before, row.after) for row in report.calibration.quality if row.after is not None]
    if change is None or not rows:
        return "whether the fit is better than the trained law is not known: it was not judged"
    before, after = (sum(one.ece for one in column) / len(rows) for column in zip(*rows, strict=True))
    if change.low <= 0 <= change.high:
        found = "not distinguishable from the trained law"
    else:
        found = "better than the trained law" if change.high < 0 else "worse than the trained law"
        found += "" if (after < before) == (change.high < 0) else " by NLL, and not by ECE"
    return (
        f"on prompts that it has not seen the fit is {found}: NLL {change.value:+.4f} ({change.low:+.4f} to "
        f"{change.high:+.4f}), ECE {before:.4f} -> {after:.4f}, each the mean over ways of asking"
    )
