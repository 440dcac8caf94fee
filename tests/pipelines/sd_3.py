"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import autoencoder


def sd3() -> StableDiffusion3Pipeline:
    """Medium: one attention a block, and queries as they are."""
    return _pipeline(dual_attention_layers=(), qk_norm=None)


def sd35() -> StableDiffusion3Pipeline:
    """Medium: a second attention, of the picture alone, in the first blocks."""
    return _pipeline(dual_attention_layers=(0, 1), qk_norm="rms_norm")


def sd35_large() -> StableDiffusion3Pipeline:
    return _pipeline(dual_attention_layers=(), qk_norm="rms_norm")


def _pipeline(**attention: Any) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=_transformer(**attention),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, scale=1.5305, shift=0.0609),
        text_encoder=text.clip_encoder_with_projection(),
        tokenizer=vocabularies.clip_tokenizer(),
        text_encoder_2=text.big_clip_encoder_with_projection(),
        tokenizer_2=vocabularies.clip_tokenizer(pad="!"),
        text_encoder_3=text.t5_encoder(),
        tokenizer_3=vocabularies.t5_tokenizer(),
    )


def _transformer(**attention: Any) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        **attention,
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=text.T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=text.CLIP_WIDTH + text.BIG_CLIP_WIDTH,
        out_channels=16,
        pos_embed_max_size=24,
    )
