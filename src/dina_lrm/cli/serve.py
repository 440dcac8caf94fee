"""`dina-lrm serve`: rewards over HTTP, and a page to try them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dina_lrm.cli.options import DeviceOption, Dtype, DtypeOption, RevisionOption, check_device
from dina_lrm.errors import InputError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from dina_lrm.serve.arena import Arena

VOTES = "votes.sqlite"

OriginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="ORIGIN",
        help="Where the page is seen besides its own address, such as https://rewards.example; may be given again.",
    ),
]
HostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="Answer to this name of the server, those of this machine, and no others; may be given again "
        "(default: any, and those of this machine alone where only it can ask, without keys).",
    ),
]
ArenaOption = Annotated[
    Path | None,
    typer.Option(
        "--arena",
        metavar="FOLDER",
        help="Let people compare these candidates: a preference folder, or a folder with prompts.jsonl.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--arena-split",
        metavar="SPLIT",
        help="Show only the prompts of this split of the arena's preference folder (default: all).",
    ),
]
VotesOption = Annotated[
    Path | None,
    typer.Option("--votes", metavar="FILE", help=f"Where votes are kept (default: FOLDER.{VOTES})."),
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="API keys, one a line; or set DINA_LRM_API_KEYS=KEY,KEY.")
]


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "--model-path",
            metavar="[NAME=]M",
            help="Model folder or hub id, with the name to serve it by; may be given again. The first one is the default.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "--base-model-path",
            metavar="B",
            help="Base pipeline of all models: folder, owner/name or owner/name@revision (default: what each model names).",
        ),
    ] = None,
    revision: RevisionOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    dtype: DtypeOption = Dtype.FLOAT32,
    device: DeviceOption = "cpu",
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, help="Noised states in one forward pass.")
    ] = 8,
    max_wait_ms: Annotated[
        float, typer.Option("--max-wait-ms", metavar="MS", min=0, help="How long a state waits for others to join it.")
    ] = 10.0,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", metavar="N", min=1, help="States that may wait; beyond it clients are told 429."),
    ] = 512,
    api_key_file: KeyFileOption = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen beyond this machine without keys; best with --allow-host.")
    ] = False,
    allow_host: HostsOption = None,
    allow_origin: OriginOption = None,
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="Let whoever has a key load and unload models over HTTP.")
    ] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log.")] = False,
    arena: ArenaOption = None,
    arena_split: SplitOption = None,
    votes: VotesOption = None,
) -> None:
    """Serve rewards over HTTP, with a page at `/`; it logs JSON lines on stderr and ends gracefully on SIGTERM."""
    named = name_models(model)
    keys = api_keys(api_key_file)
    try:
        from dina_lrm.serve.run import serve as run
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}; install it with: pip install 'dina-lrm[serve]'") from error
    from dina_lrm.serve.models import ModelSource
    from dina_lrm.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        api_keys=keys,
        no_auth=no_auth,
        allowed_hosts=tuple(allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        allow_load=allow_load,
        log_prompts=log_prompts,
    )
    check_device(device)
    sources = {name: ModelSource(path, base, revision, dtype.value, device) for name, path in named.items()}
    if arena is None and arena_split is not None:
        raise InputError(f"--arena-split {arena_split} says what an arena shows; give its folder with --arena")
    run(settings, sources, None if arena is None else open_arena(arena, votes, arena_split))


def name_models(given: list[str]) -> dict[str, str]:
    """Models by name: the one before `=`, or the last part of the path.

    Args:
        given: `NAME=PATH` or `PATH` each.

    Returns:
        Paths by name, in the order given.

    Raises:
        InputError: a name that is no word, or stands twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or "/" in name:
            name, path = Path(one).name or one, one
        if not path or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise InputError(f"--model takes NAME=PATH with a name of letters, digits, '-', '_' and '.', got {one!r}")
        if name in found:
            raise InputError(f"two models would be served as {name!r}; name them: --model NAME=PATH")
        found[name] = path
    return found


def api_keys(file: Path | None) -> tuple[SecretStr, ...]:
    """Keys of `--api-key-file` and of the environment.

    Args:
        file: one key a line; None for none.

    Returns:
        All of them.
    """
    from dina_lrm.serve.settings import KEYS_VARIABLE, read_key_file, read_keys

    of_file = () if file is None else read_key_file(file)
    return (*of_file, *read_keys(os.environ.get(KEYS_VARIABLE, ""), ","))


def open_arena(folder: Path, votes: Path | None, split: str | None = None) -> Arena:
    """The arena of a folder.

    Args:
        folder: of candidates.
        votes: an SQLite file; None keeps it beside the folder, which holds nothing but what its writer put there.
        split: whose prompts are shown; None shows all.

    Returns:
        The arena, opened.
    """
    from dina_lrm.serve.arena import Arena

    return Arena.open(folder, votes or folder.absolute().parent / f"{folder.absolute().name}.{VOTES}", split=split)
