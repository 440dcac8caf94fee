"""Prompts that are longer than a text encoder reads."""

from __future__ import annotations

import warnings
from typing import Any

from dina_lrm.backbones.encoders import shortened
from dina_lrm.errors import PromptCutWarning


def tokens_of(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, without those that mark its beginning and end."""
    found: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return found


def tell_of_cut(tokenizer: Any, room: int, prompt: str, length: int, more_helps: bool) -> None:
    """Warn of what is cut off a prompt, if anything is.

    Args:
        tokenizer: of the encoder.
        room: tokens that it reads.
        prompt: in words.
        length: the `max_sequence_length` that it was asked with.
        more_helps: whether a larger one would read more.
    """
    tokens = tokens_of(tokenizer, prompt)
    if len(tokens) > room:
        cut = tokenizer.decode(tokens[max(room, 0) :])
        larger = f", or use a larger max_sequence_length (now {length}) where the model was trained with it"
        warnings.warn(
            f"prompt {shortened(prompt)!r} has {len(tokens)} tokens and {room} are read: cut off was "
            f"{shortened(cut)!r}; shorten it{larger if more_helps else ''}",
            PromptCutWarning,
            stacklevel=3,
        )
