"""Options that several verbs share, and what becomes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dina_lrm.errors import InputError, PromptCutWarning, ValueRangeError

if TYPE_CHECKING:
    from dina_lrm.noise import Adaptive
    from dina_lrm.scoring import RewardModel

DEFAULT_SIGMA = 0.4
DEFAULT_TIE_BAND = 0.05


class Dtype(StrEnum):
    """Number formats of the frozen base weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class FusionRule(StrEnum):
    """How the levels of an ensemble are joined."""

    MEAN = "mean"
    TOKENS = "tokens"
    WEIGHTED = "weighted"


ModelOption = Annotated[str, typer.Option("--model", metavar="M", help="Model folder or hub id.")]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="B",
        help="Base pipeline: folder, owner/name or owner/name@revision (default: the one that the model names).",
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="R", help="Branch, tag or commit of the model's hub repository.")
]
PromptOption = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The text that was asked for.")]
SigmaOption = Annotated[
    float | None, typer.Option("--sigma", metavar="S", help=f"One noise level in 0..1 (default: {DEFAULT_SIGMA}).")
]
EnsembleOption = Annotated[
    str | None, typer.Option("--ensemble", metavar="S,S,...", help="Several noise levels, e.g. 0.2,0.5,0.7.")
]
FusionOption = Annotated[
    FusionRule,
    typer.Option(
        "--fusion",
        help="mean averages the levels; weighted weighs them by certainty; tokens reads them jointly, as the paper does.",
    ),
]
DrawsOption = Annotated[int | None, typer.Option("--draws", metavar="N", help="Noise tensors a level.")]
AdaptiveOption = Annotated[
    int | None, typer.Option("--adaptive", metavar="N", help="Draw until it is decided, at most N times a level.")
]
AntitheticOption = Annotated[
    bool, typer.Option("--antithetic", help="Draws come in pairs of a noise and its negative.")
]
TieBandOption = Annotated[
    float, typer.Option("--tie-band", metavar="D", help="Probabilities within so much of 0.5 are called a tie.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the noise: the same seed gives the same score.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Of the frozen base weights.")]
CutPromptOption = Annotated[
    bool, typer.Option("--cut-prompt", help="Score a prompt that is longer than the model reads by the part it reads.")
]
RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE|CONFIG", help="Name in recipes/, module:function, or a .py, .yaml or .json file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH.TO.KEY=VALUE", help="Change a value of the recipe; may be repeated."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The same as --set out=DIR.")]
ResumeOption = Annotated[
    str | None, typer.Option("--resume", metavar="auto|PATH", help="auto: from the last whole checkpoint, if any.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]


def resume_of(text: str | None) -> Path | Literal["auto"] | None:
    """What `--resume` says, as runs take it."""
    return "auto" if text == "auto" else None if text is None else Path(text)


def read_sigmas(sigma: float | None, ensemble: str | None) -> tuple[float, ...]:
    """The noise levels that `--sigma` or `--ensemble` ask for.

    Args:
        sigma: one level, if given.
        ensemble: levels between commas, if given.

    Returns:
        One or more levels.

    Raises:
        ValueRangeError: both were given, or text that is no list of numbers in [0, 1].
    """
    if sigma is not None and ensemble is not None:
        raise ValueRangeError("give either --sigma or --ensemble, and not both")
    if ensemble is not None:
        return read_levels("--ensemble", ensemble)
    return _in_range((DEFAULT_SIGMA if sigma is None else sigma,))


def read_levels(option: str, text: str) -> tuple[float, ...]:
    """The noise levels that an option lists.

    Args:
        option: its name, for the message.
        text: levels between commas.

    Raises:
        ValueRangeError: text that is no list of numbers in [0, 1].
    """
    try:
        return _in_range(tuple(float(part) for part in text.split(",")))
    except ValueRangeError:
        raise
    except ValueError as error:
        raise ValueRangeError(f'{option} takes numbers such as 0.2,0.5,0.7, got "{text}"') from error


def _in_range(levels: tuple[float, ...]) -> tuple[float, ...]:
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueRangeError(f"sigma must lie in [0, 1], got {level:g}")
    return levels


def read_draws(
    draws: int | None, default: int, adaptive: int | None, error_rate: float = 0.05, standard_error: float | None = None
) -> int | Adaptive:
    """How often to draw, as `--draws` or `--adaptive` say.

    Args:
        draws: a number, if given.
        default: where neither is given.
        adaptive: most draws, if given.
        error_rate: of a decision.
        standard_error: of a score that is drawn until then.

    Returns:
        The number, or the rule that finds it.

    Raises:
        ValueRangeError: both were given, or a standard error without `--adaptive`.
    """
    from dina_lrm.noise import Adaptive

    if draws is not None and adaptive is not None:
        raise ValueRangeError("give either --draws or --adaptive, and not both")
    if adaptive is not None:
        return Adaptive(adaptive, error_rate, standard_error)
    if standard_error is not None:
        raise ValueRangeError("--standard-error is reached by drawing until then: give --adaptive N with it")
    return default if draws is None else draws


@contextmanager
def whole_prompt(cut_prompt: bool) -> Iterator[None]:
    """Inside, a prompt that the model cannot read to its end is an error, unless the user said that it may be cut.

    Args:
        cut_prompt: what `--cut-prompt` says.

    Raises:
        InputError: naming what would be cut.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if cut_prompt else "error", PromptCutWarning)
        try:
            yield
        except PromptCutWarning as error:
            raise InputError(f"{error}; --cut-prompt scores by the part that is read") from error


def check_device(device: str) -> None:
    """Refuse a device that is not here before anything is loaded for it.

    Raises:
        ValueRangeError: no such device.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        raise ValueRangeError(f'--device "{device}" is not to be had here; cpu always is') from error


def load_model(model: str, base: str | None, device: str, dtype: Dtype, revision: str | None = None) -> RewardModel:
    """Load what `--model`, `--base`, `--device` and `--dtype` name.

    Args:
        model: folder or hub id.
        base: the same, of the base pipeline; None takes the one that the model names.
        device: in torch's words.
        dtype: of the base weights.
        revision: of the model's hub repository.

    Returns:
        The model.

    Raises:
        ValueRangeError: no such device here.
    """
    import torch

    import dina_lrm

    check_device(device)
    return dina_lrm.RewardModel.from_pretrained(
        Path(model) if Path(model).exists() else model,
        base=base,
        device=device,
        dtype=getattr(torch, dtype.value),
        revision=revision,
    )
