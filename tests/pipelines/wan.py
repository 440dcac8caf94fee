"""Wan 2.1, text to video."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import video_autoencoder


def build() -> WanPipeline:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=text.T5_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=4,
        cross_attn_norm=True,
        rope_max_seq_len=1024,
    )
    return WanPipeline(
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=video_autoencoder(AutoencoderKLWan),
        text_encoder=text.umt5_encoder(),
        tokenizer=vocabularies.t5_tokenizer(),
    )
