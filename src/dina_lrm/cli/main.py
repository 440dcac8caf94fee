"""The door of the command line: which verbs there are, and what an error looks like."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import dina_lrm
from dina_lrm.cli.align import align
from dina_lrm.cli.calibrate import calibrate
from dina_lrm.cli.compare import compare
from dina_lrm.cli.convert import convert
from dina_lrm.cli.demo import demo
from dina_lrm.cli.encode import encode
from dina_lrm.cli.eval import evaluate
from dina_lrm.cli.info import info
from dina_lrm.cli.sample import sample
from dina_lrm.cli.score import score
from dina_lrm.cli.serve import serve
from dina_lrm.cli.train import train
from dina_lrm.cli.verify import verify
from dina_lrm.errors import DinaError, InputError

__all__ = ["app", "main", "run"]

DONE, WORK_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="dina-lrm",
    help="Reward models that read noisy diffusion states. Exit status: 0 done, 1 failed, 2 wrong input.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo, encode, train, align, sample, score, compare, calibrate, serve, convert, info, verify):
    app.command()(verb)
app.command("eval")(evaluate)  # a verb that Python has, too


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dina-lrm {dina_lrm.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command and tell its exit status; an error becomes one line on stderr.

    Args:
        arguments: what follows `dina-lrm`.

    Returns:
        0 done, 1 the work failed, 2 the input is wrong, 130 interrupted.
    """
    _hush_libraries()
    try:
        status = app(args=list(arguments), prog_name="dina-lrm", standalone_mode=False)
    except TyperException as error:
        return _fail(error.format_message(), WRONG_INPUT)
    except InputError as error:
        return _fail(str(error), WRONG_INPUT)
    except (DinaError, OSError) as error:
        return _fail(str(error), WORK_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    return status if isinstance(status, int) else DONE


def _hush_libraries() -> None:
    """The libraries below us say much on stderr that the user of a command cannot act upon."""
    for name in ("DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!dina_lrm)")


def _fail(message: str, status: int) -> int:
    print(f"dina-lrm: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def main() -> None:
    """What `dina-lrm` runs."""
    sys.exit(run(sys.argv[1:]))
