"""FLUX.1."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import autoencoder


def dev() -> FluxPipeline:
    """Distilled from a guided teacher: the guidance is an input, beside the time."""
    return _pipeline(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), guidance=True)


def schnell() -> FluxPipeline:
    return _pipeline(FlowMatchEulerDiscreteScheduler(shift=1.0), guidance=False)


def _pipeline(scheduler: FlowMatchEulerDiscreteScheduler, *, guidance: bool) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.T5_WIDTH,
        pooled_projection_dim=text.CLIP_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=autoencoder(16, scale=0.3611, shift=0.1159),
        text_encoder=text.clip_encoder(),
        tokenizer=vocabularies.clip_tokenizer(),
        text_encoder_2=text.t5_encoder(),
        tokenizer_2=vocabularies.t5_tokenizer(),
    )
