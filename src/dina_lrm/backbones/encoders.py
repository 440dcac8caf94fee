"""A pipeline's text encoders and VAE: what holds them, and what is said when they cannot be had."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import SchedulerMixin
from diffusers.utils import logging

from dina_lrm.errors import BaseUnavailableError
from dina_lrm.runtime.hub import fetch, read_json

# For the while of a load the libraries swap parts of torch for all threads: another load would be left without weights.
_loading = threading.RLock()

VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


@dataclass
class Encoders:
    """What turns prompts and pictures into tensors, loaded when first asked for."""

    pipeline: Any = None
    vae: Any = None


@contextmanager
def reasons(what: str) -> Iterator[None]:
    """What a library raises while it loads becomes a `BaseUnavailableError` with the reason; one thread loads at a time."""
    try:
        with _loading:
            yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BaseUnavailableError(f"{what} could not be loaded ({reason}); is it complete?") from error


@contextmanager
def quiet(module: str) -> Iterator[None]:
    """The library's own word on cut prompts is kept back: ours names the text."""
    logger = logging.get_logger(module)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def shortened(text: str, limit: int = 80) -> str:
    """Of a long text, the beginning."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def untouched(part: Any) -> Any:
    """A component as a wrapper of ours may hold it: some pipelines write to their scheduler."""
    return copy.deepcopy(part) if isinstance(part, SchedulerMixin) else part


def require_tokenizers(base: str, revision: str | None) -> None:
    """Each tokenizer that a pipeline names is there: without its files the library makes an empty one and reads nonsense.

    Raises:
        BaseUnavailableError: naming the first that is missing.
    """
    index = read_json(base, "model_index.json", revision) or {}
    for name, entry in index.items():
        named = isinstance(entry, list) and entry and entry[-1] is not None
        if (
            name.startswith("tokenizer")
            and named
            and not any(fetch(base, f"{name}/{file}", revision) for file in VOCABULARIES)
        ):
            raise BaseUnavailableError(
                f"base {base!r} lacks {name}/ with its vocabulary ({', '.join(VOCABULARIES)}); is the download complete?"
            )
