"""Z-Image."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from tests.pipelines import text, vocabularies
from tests.pipelines.pictures import autoencoder


def build() -> ZImagePipeline:
    tokenizer = vocabularies.qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=4,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=text.QWEN_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1536, 512, 512],
    )
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, scale=0.3611, shift=0.1159),
        text_encoder=text.qwen3_encoder(tokenizer),
        tokenizer=tokenizer,
    )
