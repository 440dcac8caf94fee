"""Prompts and pictures are encoded as the pipeline encodes them, and what does not fit is told or refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.errors import PromptCutWarning, ShapeError, ValueRangeError
from dina_lrm.types import Conditioning
from tests.conformance.case import PROMPTS, Case


def is_cut(backbone: Backbone, prompt: str, length: int | None) -> bool:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        backbone.encode_prompts([prompt], length)
    assert all(issubclass(one.category, PromptCutWarning) for one in told)
    return bool(told)


def longest_that_fits(backbone: Backbone, length: int) -> str:
    """Of one letter, so that a token more is a letter more."""
    low, high = 1, 2000
    assert not is_cut(backbone, "x" * low, length)
    assert is_cut(backbone, "x" * high, length)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_cut(backbone, "x" * middle, length) else (middle, high)
    return "x" * low


class EncodingTests:
    """`encode_prompts`, `encode_images`, `decode_latents`."""

    @pytest.fixture(scope="class")
    @classmethod
    def fits(cls, case: Case, backbone: Backbone) -> str:
        """The longest prompt of one letter that is not cut at the short length."""
        return longest_that_fits(backbone, case.lengths[1])

    def test_a_prompt_that_fits_is_read_to_its_end(self, case: Case, backbone: Backbone, fits: str) -> None:
        """The warning stands where the cut is: the last letter that passes is read, the first that is told of is not."""
        length = case.lengths[1]

        def read(prompt: str) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptCutWarning)
                return backbone.encode_prompts([prompt], length).prompt_embeds[:, case.clip_tokens :]

        assert not torch.equal(read(fits[:-1] + "y"), read(fits))
        assert torch.equal(read(fits + "y"), read(fits + "z"))

    def test_a_cut_prompt_is_told_by_what_was_cut(self, case: Case, backbone: Backbone, fits: str) -> None:
        with pytest.warns(PromptCutWarning, match="qqq"):
            backbone.encode_prompts(["a red fox", fits + "qqq"], case.lengths[1])

    def test_the_config_says_the_length(self, case: Case, pipeline: Any, backbone: Backbone, fits: str) -> None:
        if not case.shortens:
            return
        long, short = (case.load(pipeline, max_sequence_length=length) for length in case.lengths)
        assert torch.equal(
            long.encode_prompts(PROMPTS[:1]).prompt_embeds,
            backbone.encode_prompts(PROMPTS[:1], case.lengths[0]).prompt_embeds,
        )
        assert is_cut(short, fits + "y", None)
        assert not is_cut(long, fits + "y", None)

    def test_prompts_are_not_changed(self, case: Case, backbone: Backbone, conditioning: Conditioning) -> None:
        prompts = list(PROMPTS)
        again = backbone.encode_prompts(prompts, case.lengths[0])
        assert prompts == list(PROMPTS)
        assert torch.equal(again.prompt_embeds, conditioning.prompt_embeds)
        assert not again.prompt_embeds.requires_grad

    @pytest.mark.parametrize("prompts", [[], "a cat", [None]])
    def test_prompts_must_be_a_list_of_strings(self, backbone: Backbone, prompts: Any) -> None:
        with pytest.raises(ValueRangeError, match="prompts"):
            backbone.encode_prompts(prompts)

    def test_images_become_the_latents_of_the_network(self, case: Case, pipeline: Any, backbone: Backbone) -> None:
        pixels = self.pixels(case, backbone)
        framed = pixels.unsqueeze(2) if case.framed else pixels
        with torch.no_grad():
            raw = pipeline.vae.encode(2 * framed - 1).latent_dist.mode()
        latents = backbone.encode_images(pixels)
        expected = case.standardised(pipeline.vae, raw)
        torch.testing.assert_close(latents, expected.squeeze(2) if case.framed else expected)
        assert latents.shape[1] == backbone.latent_channels and latents.ndim == len(case.latent_shapes[0]) + 1

    def test_latents_become_images_of_the_same_shape(self, case: Case, pipeline: Any, backbone: Backbone) -> None:
        pixels = self.pixels(case, backbone)
        latents = backbone.encode_images(pixels)
        decoded = backbone.decode_latents(latents)
        assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
        assert torch.equal(backbone.encode_images(pixels), latents)
        raw = self.raw(case, pipeline, latents)
        with torch.no_grad():
            expected = pipeline.vae.decode(raw).sample / 2 + 0.5
        torch.testing.assert_close(decoded, expected.clamp(0, 1).reshape(decoded.shape))

    def test_latents_of_images_are_read(self, case: Case, backbone: Backbone, conditioning: Conditioning) -> None:
        latents = backbone.encode_images(self.pixels(case, backbone))
        state = backbone.process.add_noise(latents, torch.randn_like(latents), torch.tensor([0.5, 0.5]))
        assert backbone.features(state, conditioning[:2]).image_tokens[-1].isfinite().all()

    def test_bad_pixels_are_refused(self, case: Case, backbone: Backbone) -> None:
        good = self.pixels(case, backbone)
        for pixels in (good * 255, good - 0.5, torch.full_like(good, float("nan"))):
            with pytest.raises(ValueRangeError, match="pixels"):
                backbone.encode_images(pixels)
        for pixels in (good[0], good[:, :1], good[..., : good.shape[-1] - 1]):
            with pytest.raises(ShapeError):
                backbone.encode_images(pixels)

    def test_the_schedule_falls(self, backbone: Backbone) -> None:
        sigmas = backbone.schedule_sigmas()
        assert sigmas.ndim == 1 and len(sigmas) > 1
        assert (sigmas.diff() < 0).all()
        assert sigmas.min() > 0 and sigmas.max() <= 1

    @staticmethod
    def pixels(case: Case, backbone: Backbone) -> Tensor:
        """Wider than high; of the smallest sides that there are."""
        side = backbone.image_multiple
        frames = [] if case.frames is None else [case.frames]
        return torch.rand(2, 3, *frames, side, 2 * side, generator=torch.Generator().manual_seed(3))

    @staticmethod
    def raw(case: Case, pipeline: Any, latents: Tensor) -> Tensor:
        """By the hand formula backwards: it is linear, so two points say what it is."""
        framed = latents.unsqueeze(2) if case.framed else latents
        shift = case.standardised(pipeline.vae, torch.zeros_like(framed))
        return (framed - shift) / (case.standardised(pipeline.vae, torch.ones_like(framed)) - shift)
