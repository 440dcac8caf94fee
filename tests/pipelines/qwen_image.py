"""Qwen-Image."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import video_autoencoder


def build() -> QwenImagePipeline:
    tokenizer = vocabularies.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.QWEN_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=video_autoencoder(AutoencoderKLQwenImage),
        text_encoder=text.qwen25_vl_encoder(tokenizer),
        tokenizer=tokenizer,
    )
