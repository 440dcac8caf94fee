"""Features are what the whole pipeline shows, whatever the size, the length, the neighbours and the cut."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.errors import PromptCutWarning, ShapeError, ValueRangeError
from dina_lrm.types import Conditioning, Features, NoisedState
from tests.conformance.case import PROMPTS, Case, furthest, joined, same, worst

FLOAT32 = 1e-5
BFLOAT16 = 0.03
NEAR = 0.5  # of half precision to single: a guidance of 3500 is 3504 there; tokens that have nothing to do with it are at 1.4


class FeatureTests:
    """Noised states in, tokens out."""

    def test_taps_equal_hooks_on_the_whole_pipeline(
        self, case: Case, pipeline: Any, state: NoisedState, features: Features
    ) -> None:
        for i, expected in enumerate(case.expected(pipeline, state, case.lengths[0])):
            assert furthest(features[i : i + 1], expected) < FLOAT32

    def test_at_other_sizes_and_aspect_ratios(
        self, case: Case, pipeline: Any, backbone: Backbone, conditioning: Conditioning
    ) -> None:
        for shape in case.latent_shapes[1:]:
            state = case.state(shape)
            found = backbone.features(state, conditioning)
            for i, expected in enumerate(case.expected(pipeline, state, case.lengths[0])):
                assert furthest(found[i : i + 1], expected) < FLOAT32, shape

    def test_at_another_length(self, case: Case, pipeline: Any, backbone: Backbone, state: NoisedState) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptCutWarning)
            found = backbone.features(state, backbone.encode_prompts(PROMPTS, case.lengths[1]))
        for i, expected in enumerate(case.expected(pipeline, state, case.lengths[1])):
            assert furthest(found[i : i + 1], expected) < FLOAT32

    def test_every_tap_alone(self, case: Case, pipeline: Any, state: NoisedState, conditioning: Conditioning) -> None:
        """The network is cut after the tap: what is left gives the same tokens."""
        sigma = case.sigmas[0]
        every = case.whole(pipeline, list(PROMPTS), state.noised_latents, sigma, case.lengths[0])
        at_once = NoisedState(state.noised_latents, torch.full_like(state.sigma, sigma))
        for tap in range(case.last_taps[0] + 1):
            text = min(tap, case.last_taps[1])
            backbone = case.load(pipeline, image_taps=(tap,), text_taps=(text,))
            expected = replace(
                every, image_tokens=every.image_tokens[tap : tap + 1], text_tokens=(every.text_tokens[text],)
            )
            assert furthest(backbone.features(at_once, conditioning), expected) < FLOAT32, tap

    def test_bfloat16_equals_the_whole_pipeline_in_bfloat16(
        self, case: Case, state: NoisedState, features: Features
    ) -> None:
        """Half precision spoils the time first: 999 and 1000 are one number there. The library knows where it may be cast."""
        pipeline = type(self).in_bfloat16(case)
        backbone = case.load(pipeline, torch.bfloat16)
        assert backbone.dtype == torch.bfloat16
        halved = NoisedState(state.noised_latents.bfloat16(), state.sigma)
        found = backbone.features(halved, backbone.encode_prompts(PROMPTS, case.lengths[0]))
        for i, expected in enumerate(case.expected(pipeline, halved, case.lengths[0])):
            assert furthest(found[i : i + 1], expected) < BFLOAT16
        assert furthest(found, features) < NEAR

    @staticmethod
    def in_bfloat16(case: Case) -> Any:
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(case.folder, dtype=torch.bfloat16)

    def test_the_head_is_told_the_true_shape(self, case: Case, backbone: Backbone, features: Features) -> None:
        shape = backbone.feature_shape
        assert shape.image_widths == tuple(tokens.shape[-1] for tokens in features.image_tokens)
        assert shape.text_widths == tuple(tokens.shape[-1] for tokens in features.text_tokens)
        assert shape.temb_width == features.temb.shape[-1] == backbone.temb_width
        finest, counts = min(shape.image_scales), [tokens.shape[1] for tokens in features.image_tokens]
        assert all(
            count * (scale // finest) ** 2 == max(counts)
            for count, scale in zip(counts, shape.image_scales, strict=True)
        )

    def test_alone_equals_in_a_batch(
        self, case: Case, backbone: Backbone, state: NoisedState, features: Features
    ) -> None:
        """Each prompt encoded alone, too: a longer neighbour pads it."""
        for i, prompt in enumerate(PROMPTS):
            alone = backbone.features(state[i : i + 1], backbone.encode_prompts([prompt], case.lengths[0]))
            assert worst(features[i : i + 1], alone) < FLOAT32

    def test_prompts_encoded_apart_join(
        self, case: Case, backbone: Backbone, state: NoisedState, features: Features
    ) -> None:
        apart = joined([backbone.encode_prompts([prompt], case.lengths[0]) for prompt in PROMPTS])
        assert worst(backbone.features(state, apart), features) < FLOAT32

    def test_order_does_not_matter(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        order = torch.tensor([2, 0, 1])
        assert worst(backbone.features(state[order], conditioning[order]), features[order]) < FLOAT32

    def test_the_same_call_gives_the_same_bits(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        random = torch.get_rng_state()
        assert same(backbone.features(state, conditioning), features)
        assert same(backbone(state, conditioning), features)
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(module._forward_hooks for module in backbone.network.modules())

    def test_every_input_matters(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning, features: Features
    ) -> None:
        """Also where a tap of the text stands still, temb or the image must have noticed."""
        others = (
            (NoisedState(state.noised_latents + 0.1, state.sigma), conditioning),
            (NoisedState(state.noised_latents, state.sigma.flip(0)), conditioning),
            (state, conditioning.map(lambda t: t if t.dtype == torch.bool else t.roll(1, -1))),
        )
        for other in others:
            assert (backbone.features(*other).image_tokens[-1] - features.image_tokens[-1]).abs().max() > 1e-4

    def test_latents_of_another_shape_are_refused(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        latents = state.noised_latents
        wrong = (
            torch.cat([latents, latents], dim=1),
            latents.unsqueeze(2) if latents.ndim == 4 else latents[:, :, 0],
            latents[..., : latents.shape[-1] - 1],
        )
        for other in wrong:
            with pytest.raises(ShapeError, match="latent"):
                backbone.features(NoisedState(other, state.sigma), conditioning)

    def test_prompts_of_another_width_or_number_are_refused(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        embeds, pooled, mask = conditioning.prompt_embeds, conditioning.pooled_prompt_embeds, conditioning.prompt_mask
        with pytest.raises(ShapeError, match="prompt_embeds"):
            backbone.features(state, Conditioning(embeds[..., 1:], pooled, mask))
        with pytest.raises(ShapeError, match="prompts"):
            backbone.features(state, conditioning[:1])
        if pooled is not None:
            for other in (pooled[..., 1:], None):
                with pytest.raises(ShapeError, match="pooled_prompt_embeds"):
                    backbone.features(state, Conditioning(embeds, other, mask))

    @pytest.mark.parametrize("sigma", [-0.1, 1.5, float("nan")])
    def test_sigma_out_of_range_is_refused(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning, sigma: float
    ) -> None:
        with pytest.raises(ValueRangeError, match="sigma"):
            backbone.features(NoisedState(state.noised_latents, torch.tensor([0.5, sigma, 0.5])), conditioning)

    def test_pure_noise_and_clean_latents_are_read(
        self, backbone: Backbone, state: NoisedState, conditioning: Conditioning
    ) -> None:
        ends: Tensor = torch.tensor([0.0, 1.0, 1.0])
        found = backbone.features(NoisedState(state.noised_latents, ends), conditioning)
        assert all(tokens.isfinite().all() for tokens in (*found.image_tokens, found.temb))
