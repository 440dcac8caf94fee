"""The prompts of a run, read and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dina_lrm.alignment.config import (
    AnyPrompts,
    FactoryPromptsConfig,
    PreferencePromptsConfig,
    PromptFileConfig,
    made_by,
)
from dina_lrm.backbones import Backbone
from dina_lrm.data import PreferenceData, unique_prompts
from dina_lrm.errors import DataError

__all__ = ["evenly", "read_prompts", "refuse_cut"]

OTHER_KINDS = (".csv", ".tsv", ".json", ".yaml", ".yml", ".parquet", ".arrow")


def read_prompts(config: AnyPrompts) -> tuple[str, ...]:
    """Each prompt once, in order.

    Raises:
        DataError: no prompts, an empty one, or a file that cannot be read.
    """
    match config:
        case PromptFileConfig():
            where, found = str(config.path), list[object](_of_file(config.path))
        case PreferencePromptsConfig():
            where = f"split {config.split!r} of {config.folder}"
            found = list(unique_prompts(PreferenceData.open(config.folder).pairs(config.split)))
        case FactoryPromptsConfig():
            where, found = config.make, list(made_by(config.make)(**config.options))
    if not found:
        raise DataError(f"{where} holds no prompts; at least one is needed")
    prompts: dict[str, None] = {}
    for place, prompt in enumerate(found, 1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"prompt {place} of {where} is empty or no text: {prompt!r}; remove it")
        prompts[prompt] = None
    return tuple(prompts)


def _of_file(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind in OTHER_KINDS:
        raise DataError(f'{path} must hold a prompt a line, or be .jsonl with a "prompt" each; convert it')
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts cannot be read from {path}: {error}") from error
    if kind != ".jsonl":
        return [line for line in lines if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line)["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'line {number} of {path} is no JSON object with a "prompt": {line[:80]!r}') from error
    return found


def evenly(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """So many of them, evenly spaced."""
    count = min(count, len(prompts))
    return tuple(prompts[place * len(prompts) // count] for place in range(count))


def refuse_cut(backbone: Backbone, prompts: Sequence[str], whose: str) -> None:
    """Refuse prompts that a text encoder would not read to their end; the empty one is nobody's.

    Raises:
        DataError: naming the first, and how many there are.
    """
    cut = [prompt for prompt, is_cut in zip(prompts, backbone.cut_prompts(prompts), strict=True) if is_cut]
    if cut:
        first = cut[0] if len(cut[0]) < 100 else f"{cut[0][:97]}..."
        raise DataError(
            f"{len(cut)} of {sum(map(bool, prompts))} prompts are longer than {whose} reads, the first: {first!r}; shorten them, or take "
            "them cut (cut_prompts=true)"
        )
