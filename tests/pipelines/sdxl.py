"""Stable Diffusion XL."""

from __future__ import annotations

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import autoencoder

_SIZE_WIDTH = 8
_SIZES = 6


def build() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        unet=_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        vae=autoencoder(4, scale=0.13025),
        text_encoder=text.clip_encoder(),
        tokenizer=vocabularies.clip_tokenizer(),
        text_encoder_2=text.big_clip_encoder_with_projection(),
        tokenizer_2=vocabularies.clip_tokenizer(pad="!"),
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 32),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        # Heads a level, whatever the name says: the real network has the same 5, 10, 20 at 320, 640, 1280.
        attention_head_dim=(1, 2, 4),
        norm_num_groups=4,
        cross_attention_dim=text.CLIP_WIDTH + text.BIG_CLIP_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_SIZE_WIDTH,
        projection_class_embeddings_input_dim=text.BIG_CLIP_WIDTH + _SIZES * _SIZE_WIDTH,
    )
