"""Text encoders, two layers deep, of the real pipelines' classes. Widths differ, so that a mix-up does not fit."""

from __future__ import annotations

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.pipelines.vocabularies import CLIP_BOS, CLIP_EOS, CLIP_VOCABULARY, T5_VOCABULARY

CLIP_WIDTH, BIG_CLIP_WIDTH, T5_WIDTH, QWEN_WIDTH = 16, 24, 48, 40


def clip_encoder() -> CLIPTextModel:
    return CLIPTextModel(_clip_config(CLIP_WIDTH, activation="quick_gelu"))


def clip_encoder_with_projection() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config(CLIP_WIDTH, activation="quick_gelu"))


def big_clip_encoder_with_projection() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config(BIG_CLIP_WIDTH, activation="gelu"))


def _clip_config(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=CLIP_BOS,
        eos_token_id=CLIP_EOS,
        pad_token_id=CLIP_EOS,
    )


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_T5))


def umt5_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**_T5))


_T5 = dict(
    vocab_size=T5_VOCABULARY,
    d_model=T5_WIDTH,
    d_ff=64,
    d_kv=8,
    num_layers=2,
    num_heads=4,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
)


def qwen3_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    return Qwen3Model(Qwen3Config(**_qwen(tokenizer), head_dim=16, tie_word_embeddings=True))


def qwen25_vl_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 4, 4]}
    config = Qwen2_5_VLConfig(
        text_config={**_qwen(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": QWEN_WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen(tokenizer: Qwen2Tokenizer) -> dict[str, object]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=QWEN_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
