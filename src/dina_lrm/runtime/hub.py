"""Single files of a repository: a local folder, or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dina_lrm.errors import BaseUnavailableError, InputError


def fetch(repository: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a local folder or of a hub repository, downloaded if need be; None if the repository has no such file.

    Raises:
        InputError: the repository itself is out of reach, with the reason.
    """
    if Path(repository).is_dir():
        path = Path(repository) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        if _is_cached(repository, revision):  # the hub is out of reach, and of what was downloaded this is no part
            return None
        raise BaseUnavailableError(hub_reason(repository, revision, error)) from error
    except RemoteEntryNotFoundError:
        return None
    except (HFValidationError, OSError, ValueError) as error:
        raise BaseUnavailableError(hub_reason(repository, revision, error)) from error


def _is_cached(repository: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    known = ("model_index.json", "config.json")
    return any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in known)


def read_json(repository: str, name: str, revision: str | None = None) -> dict[str, Any] | None:
    """A JSON object of a repository; None if there is no such file.

    Raises:
        InputError: out of reach, or not a JSON object.
    """
    path = fetch(repository, name, revision)
    if path is None:
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); copy or download it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def hub_reason(repository: str, revision: str | None, error: Exception) -> str:
    """Why a repository could not be had and what to do, in one sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repository!r} is gated: accept its terms on https://huggingface.co/{repository} and log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository!r} has no revision {revision!r}; name a branch, tag or commit that it has"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repository!r} is no folder here and no repository on the hub; check its name (or log in, if it is private)"
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is no folder here and no hub id, which reads owner/name; check the path"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
        at = f" at revision {revision!r}" if revision else ""
        return (
            f"{repository!r}{at} is no folder here, is not in the hub's cache, and the hub cannot be reached; "
            "check the path or the network"
        )
    return f"{repository!r} could not be had from the hub ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
