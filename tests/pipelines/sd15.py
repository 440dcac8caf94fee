"""Stable Diffusion 1.5."""

from __future__ import annotations

from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import autoencoder


def build() -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=2,
        # Heads, whatever the name says: the real network has eight at every level.
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=text.CLIP_WIDTH,
    )
    return StableDiffusionPipeline(
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vae=autoencoder(4, scale=0.18215),
        text_encoder=text.clip_encoder(),
        tokenizer=vocabularies.clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
