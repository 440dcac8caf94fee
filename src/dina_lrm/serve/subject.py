"""What a request is about, in the terms of the model that is asked: candidates and prompts, encoded, of sizes it can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.images import as_pixels
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Part
from dina_lrm.serve.engine import Visit
from dina_lrm.serve.settings import ServeSettings
from dina_lrm.types import Conditioning, NoisedState

__all__ = ["Subject", "check", "conditioning_of", "encode_pictures", "encode_pixels", "part_of"]

PIXELS_PER_ELEMENT = 4  # of the latents, at least, whatever the backbone: 8 x 8 pixels are 16 numbers


@dataclass(frozen=True)
class Subject:
    """Candidates and their prompts.

    Attributes:
        parts: candidates, those of one shape together.
        conditioning: prompts, one for all or one a candidate.
    """

    parts: tuple[Part, ...]
    conditioning: Conditioning

    def __len__(self) -> int:
        return sum(len(part.places) for part in self.parts)


def conditioning_of(tensors: Mapping[str, Tensor]) -> Conditioning | None:
    """Encoded prompts out of a blob; None where it holds none.

    Raises:
        DataError: a part of them without the others.
        ShapeError: they do not fit each other.
    """
    embeds = tensors.get("prompt_embeds")
    pooled, mask = tensors.get("pooled_prompt_embeds"), tensors.get("prompt_mask")
    if embeds is None:
        if pooled is not None or mask is not None:
            raise DataError("pooled_prompt_embeds and prompt_mask need prompt_embeds, and the blob holds none")
        return None
    return Conditioning(embeds, pooled, mask)


def part_of(latents: Tensor, device: torch.device, settings: ServeSettings) -> Part:
    """Candidates given as latents.

    Raises:
        ShapeError: larger than the server takes.
    """
    _check_elements(latents, settings)
    return Part(torch.arange(len(latents)), latents.to(device))


async def encode_pictures(
    visit: Visit, pictures: Sequence[Image.Image], max_batch_size: int, settings: ServeSettings
) -> tuple[Part, ...]:
    """Candidates given as pictures, those of one size together, a few at once so that others are read in between.

    Args:
        visit: way to the model.
        pictures: fitted to it.
        max_batch_size: most in one pass of the encoder.
        settings: for the largest latents.

    Returns:
        Their latents.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, picture in enumerate(pictures):
        by_size.setdefault(picture.size, []).append(place)
    parts = []
    for places in by_size.values():
        chunks = [places[start : start + max_batch_size] for start in range(0, len(places), max_batch_size)]
        found = [await visit.call(_Encoding([pictures[place] for place in chunk]), len(chunk)) for chunk in chunks]
        latents = torch.cat(found)
        _check_elements(latents, settings)
        parts.append(Part(torch.tensor(places), latents))
    return tuple(parts)


async def encode_pixels(visit: Visit, pixels: Tensor, max_batch_size: int, settings: ServeSettings) -> tuple[Part, ...]:
    """Candidates given as pixels, which are encoded in their own size.

    Args:
        visit: way to the model.
        pixels: `[b 3 y x]` in 0..1.
        max_batch_size: most in one pass of the encoder.
        settings: for the largest latents.

    Returns:
        Their latents.

    Raises:
        ShapeError: not three channels, or larger than the server takes.
        ValueRangeError: values outside 0..1.
    """
    most = PIXELS_PER_ELEMENT * settings.max_latent_elements
    if pixels.shape[1] != 3 or pixels.shape[2] * pixels.shape[3] > most:
        raise ShapeError(f"pixels must be [b 3 y x] with at most {most} pixels each, got {list(pixels.shape)}")
    low, high = float(pixels.amin()), float(pixels.amax())
    if low < 0 or high > 1:
        raise ValueRangeError(f"pixels must lie in 0..1, got {low:g} to {high:g}; divide bytes by 255")
    found = [await visit.call(_PixelEncoding(chunk), len(chunk)) for chunk in torch.split(pixels, max_batch_size)]
    latents = torch.cat(found)
    _check_elements(latents, settings)
    return (Part(torch.arange(len(latents)), latents),)


def check(subject: Subject, backbone: Backbone, settings: ServeSettings) -> None:
    """Refuse what the model cannot read, before it meets the states of others.

    Args:
        subject: candidates and prompts.
        backbone: of the model.
        settings: for the longest prompt.

    Raises:
        ShapeError: shapes or counts do not fit.
    """
    count, prompts = len(subject), len(subject.conditioning)
    if prompts not in (1, count):
        raise ShapeError(f"{count} candidates need 1 or {count} prompts, got {prompts}")
    length = subject.conditioning.prompt_embeds.shape[1]
    if length > settings.max_prompt_tokens:
        raise ShapeError(f"prompt_embeds have {length} tokens, at most {settings.max_prompt_tokens} are read")
    for part in subject.parts:
        state = NoisedState(part.latents, torch.zeros(len(part.latents)))
        rows = subject.conditioning if prompts == len(part.latents) else _like(subject.conditioning, len(part.latents))
        backbone.check(state, rows)


@dataclass(frozen=True)
class _Encoding:
    """Some pictures of one size, to be encoded in the model's thread."""

    pictures: Sequence[Image.Image]

    def __call__(self, model: RewardModel) -> Tensor:
        return model.encode_images(torch.stack([as_pixels(picture) for picture in self.pictures])).float()


@dataclass(frozen=True)
class _PixelEncoding:
    """Pixels, to be encoded in the model's thread."""

    pixels: Tensor

    def __call__(self, model: RewardModel) -> Tensor:
        return model.encode_images(self.pixels).float()


def _like(conditioning: Conditioning, count: int) -> Conditioning:
    """As many rows as candidates, without copying any: their shapes alone are looked at."""
    return conditioning.map(lambda t: t[:1].expand(count, *t.shape[1:]))


def _check_elements(latents: Tensor, settings: ServeSettings) -> None:
    elements = latents[0].numel()
    if elements > settings.max_latent_elements:
        raise ShapeError(
            f"latents {list(latents.shape)} hold {elements} numbers a sample, at most {settings.max_latent_elements} are read"
        )
