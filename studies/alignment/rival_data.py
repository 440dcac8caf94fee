"""What a rival learns from: decoded pictures of a preference folder, its training pairs, and real art of the same concepts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.data import PairTable, PreferenceData
from dina_lrm.errors import DataError
from dina_lrm.runtime.files import atomic_write
from studies.alignment.rival import split_words
from worlds.emoji.prompts import Phrases, caption, every_caption, read_phrases

__all__ = ["Captions", "Material", "PairBatch", "decode_once", "shown_concepts"]

DECODED_AT_ONCE = 64
Shown = tuple[str, str]  # concept and style


def decode_once(
    folder: Path, data: PreferenceData, backbone: Backbone, art: Sequence[Mapping[str, Any]]
) -> tuple[Tensor, Tensor]:
    """Every picture of a preference folder, and the art after the autoencoder, uint8 `[n 3 y x]`; kept in a file.

    Args:
        folder: of the file, whose name tells the folder's weights.
        data: the preference folder.
        backbone: whose VAE decodes.
        art: rows with `pixels`.
    """
    latents = data.info["sha256"]["latents.safetensors"]
    path = folder / f"pictures-{latents[:12]}-{len(art)}.safetensors"
    if not path.is_file():
        with torch.no_grad():
            rows = torch.arange(data.info["counts"]["latents"]).split(DECODED_AT_ONCE)
            pictures = torch.cat([_decoded(backbone, data.latents(part)) for part in rows])
            parts = torch.stack([row["pixels"] for row in art]).split(DECODED_AT_ONCE)
            # In half precision, as candidates are stored.
            drawn = [_decoded(backbone, backbone.encode_images(part / 255).half().float()) for part in parts]
        with atomic_write(path) as file:
            file.write(save({"pictures": pictures, "art": torch.cat(drawn)}))
    found = load_file(path)
    return found["pictures"], found["art"]


def _decoded(backbone: Backbone, latents: Tensor) -> Tensor:
    return backbone.decode_latents(latents).clamp(0, 1).mul(255).round().to(torch.uint8)


def shown_concepts(pairs: PairTable) -> set[str]:
    """Concepts that the pictures of some pairs show."""
    return {origin.concept for origin in (*pairs.chosen_origin, *pairs.rejected_origin) if origin and origin.concept}


@dataclass(frozen=True)
class Captions:
    """What may be said of a picture.

    Attributes:
        phrases: words for each concept.
        keywords: of each concept.
        styles: all of them.
    """

    phrases: Mapping[str, Phrases]
    keywords: Mapping[str, tuple[str, ...]]
    styles: tuple[str, ...]

    @staticmethod
    def of(art: Sequence[Mapping[str, Any]]) -> Captions:
        """From rows of the art tables."""
        keywords = {row["concept"]: tuple(row["keywords"]) or (row["concept"],) for row in art}
        return Captions(read_phrases(dict(row) for row in art), keywords, tuple(sorted({row["style"] for row in art})))

    def words(self, prompts: Iterable[str]) -> list[str]:
        """Every word of some prompts and of all captions, sorted."""
        texts = [*prompts, *(text for one in self.phrases.values() for text in every_caption(one, self.styles))]
        return sorted({word for text in texts for word in split_words(text)})

    def draw(self, shown: Sequence[Shown], generator: torch.Generator) -> tuple[list[str], Tensor]:
        """A caption a picture and one a style, and which pictures each is true of `[captions pictures]`."""

        def chance(share: float) -> bool:
            return float(torch.rand((), generator=generator)) < share

        texts: list[str] = []
        true: list[list[bool]] = []
        for concept, style in shown:
            by_keyword, styled = chance(0.25), chance(0.7)
            if by_keyword:
                words = self.keywords[concept]
                word = words[int(torch.randint(len(words), (), generator=generator))]
                texts.append(f"{word}, {style} style" if styled else word)
            else:
                texts.append(caption(self.phrases[concept], style if styled else None, generator))
            fits = {other: word in self.keywords[other] if by_keyword else other == concept for other, _ in shown}
            true.append([fits[other] and (not styled or its == style) for other, its in shown])
        for style in self.styles:
            texts.append(f"{style} style")
            true.append([its == style for _, its in shown])
        return texts, torch.tensor(true)


@dataclass(frozen=True)
class PairBatch:
    """All pairs of some prompts.

    Attributes:
        rows: pictures, each once `[r]`.
        prompts: the prompts `[p]`.
        picture: of each candidate, as a place in `rows` `[n]`.
        prompt: of each candidate, as a place in `prompts` `[n]`.
        chosen: of each pair, as a place among the candidates `[m]`.
        rejected: likewise `[m]`.
        target: share of votes for chosen `[m]`.
        weight: of each pair, so that prompts weigh alike; adds up to 1 `[m]`.
    """

    rows: Tensor
    prompts: tuple[str, ...]
    picture: Tensor
    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Material:
    """All that a rival sees.

    Attributes:
        pictures: uint8 `[n 3 y x]`, one a row of the preference folder.
        pairs: of the training split.
        art: real art of the concepts of these pairs, uint8 `[a 3 y x]`.
        art_shows: concept and style of each.
        captions: what may be said of them.
    """

    pictures: Tensor
    pairs: PairTable
    art: Tensor
    art_shows: tuple[Shown, ...]
    captions: Captions

    def __post_init__(self) -> None:
        strange = {concept for concept, _ in self.shows.values()} - set(self.captions.keywords)
        if strange:
            raise DataError(
                f"training pictures show {sorted(strange)[0]!r}, which is not in the art tables; give its art too"
            )

    @cached_property
    def shows(self) -> dict[int, Shown]:
        """Concept and style of every picture of the training pairs whose origin is told."""
        sides = (
            (self.pairs.chosen_origin, self.pairs.chosen_row),
            (self.pairs.rejected_origin, self.pairs.rejected_row),
        )
        return {
            int(row): (origin.concept, origin.style)
            for origins, rows in sides
            for origin, row in zip(origins, rows, strict=True)
            if origin and origin.concept and origin.style
        }

    @cached_property
    def groups(self) -> list[list[int]]:
        """Pairs of the prompts that share pictures: what one pass of the trunk serves. Grouped by what is asked for."""
        by_prompt: dict[str, list[int]] = defaultdict(list)
        for place, prompt in enumerate(self.pairs.prompt):
            by_prompt[prompt].append(place)
        by_concept: dict[str, list[int]] = defaultdict(list)
        for places in by_prompt.values():
            rows = [row for p in places for row in (self.pairs.chosen_row[p], self.pairs.rejected_row[p])]
            seen = [self.shows[int(row)][0] for row in rows if int(row) in self.shows]
            by_concept[max(set(seen), key=seen.count) if seen else self.pairs.prompt[places[0]]] += places
        return list(by_concept.values())

    def batch(self, groups: npt.NDArray[np.int64]) -> PairBatch:
        """All pairs of some groups."""
        places = np.concatenate([self.groups[group] for group in groups])
        pairs = self.pairs[places]
        sides = (pairs.chosen_row, pairs.rejected_row)
        rows = np.unique(np.concatenate(sides))
        prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(pairs.prompt))}
        asked = np.array([prompts[prompt] for prompt in pairs.prompt])
        keys = [asked * len(rows) + np.searchsorted(rows, side) for side in sides]
        candidates = np.unique(np.concatenate(keys))
        counts = np.bincount(asked)
        return PairBatch(
            rows=torch.from_numpy(rows),
            prompts=tuple(prompts),
            picture=torch.from_numpy(candidates % len(rows)),
            prompt=torch.from_numpy(candidates // len(rows)),
            chosen=torch.from_numpy(np.searchsorted(candidates, keys[0])),
            rejected=torch.from_numpy(np.searchsorted(candidates, keys[1])),
            target=torch.from_numpy(pairs.target),
            weight=torch.from_numpy(1 / (counts[asked] * len(prompts))).float(),
        )
