"""Join the trained parts into a true `StableDiffusion3Pipeline` folder, in float16."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from common import ROOT

SEQUENCE_LENGTH = 16  # the recommended `max_sequence_length`: the T5 is empty, so it only counts zero tokens


def empty_t5(width: int) -> T5EncoderModel:
    """A T5 that knows nothing and says so: every state it gives is zero, as diffusers puts where SD3's T5 is left out.

    It is there because `StableDiffusion3Pipeline.from_pretrained(folder)` refuses a folder without one.
    """
    config = T5Config(vocab_size=len(EMPTY_VOCABULARY), d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config).eval().requires_grad_(False)
    encoder.encoder.final_layer_norm.weight.zero_()
    return encoder


EMPTY_VOCABULARY = (("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0))


def empty_t5_tokenizer() -> T5Tokenizer:
    """Every word is unknown to it."""
    return T5Tokenizer(vocab=list(EMPTY_VOCABULARY), extra_ids=0, model_max_length=256)


def assemble(transformer: SD3Transformer2DModel, parts: Path, vae: Path | None = None) -> StableDiffusion3Pipeline:
    """The pipeline of `transformer` and what lies in the folder `parts`, weights rounded to float16, kept in float32."""
    encoders = [CLIPTextModelWithProjection.from_pretrained(parts / f"text_encoder{suffix}") for suffix in ("", "_2")]
    tokenizers = [CLIPTokenizer.from_pretrained(parts / f"tokenizer{suffix}") for suffix in ("", "_2")]
    autoencoder = AutoencoderKL.from_pretrained(vae or parts / "vae")
    for module in (autoencoder, *encoders):
        module.half().float().eval().requires_grad_(False)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=empty_t5(transformer.config.joint_attention_dim),
        tokenizer_3=empty_t5_tokenizer(),
    )


def save(pipeline: StableDiffusion3Pipeline, out: Path) -> None:
    """Write the folder whole, in float16, before it takes the place of the one before it."""
    halves = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in pipeline.components.items()
    }
    fresh, stale = out.with_name(f".{out.name}-new"), out.with_name(f".{out.name}-old")
    for folder in (fresh, stale):
        shutil.rmtree(folder, ignore_errors=True)
    StableDiffusion3Pipeline(**halves).save_pretrained(fresh)
    for config in fresh.glob("*/config.json"):
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")  # where it was built is nobody's business
    for config in fresh.glob("text_encoder*/config.json"):
        # transformers loads in the dtype that the config names, diffusers in float32: without this a plain
        # from_pretrained gives half-precision encoders before a single-precision transformer.
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    if out.exists():
        os.rename(out, stale)
    os.rename(fresh, out)
    shutil.rmtree(stale, ignore_errors=True)


if __name__ == "__main__":
    build = ROOT / "build"
    save(assemble(SD3Transformer2DModel.from_pretrained(build / "transformer"), build), ROOT / "pipeline")
