"""Stable Diffusion XL: the UNet down to its middle and one block up, LoRA and query head, on HPDv3.

No configuration was published: SD3.5's optimiser is taken. Taps of two resolutions stand behind each other as tokens. CLIP
reads 77 tokens whatever max_sequence_length says. Never trained.
What the release meant and did not do is done: trained weights are float32 beside a bfloat16 base, the averaged weights
are kept and exported, the warm-up is applied, and every process draws its own levels and noise.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.training import OptimiserConfig, ScheduleConfig, TrainConfig, ValidationConfig


def recipe() -> TrainConfig:
    """`data` is a preference folder encoded with this base: `--set data=FOLDER`."""
    return TrainConfig(
        data=Path("data/hpdv3-sdxl"),
        base="stabilityai/stable-diffusion-xl-base-1.0",
        out=Path("runs/sdxl-thurstone"),
        backbone=BackboneConfig(
            kind="sdxl",
            image_taps=(2, 4, 5),
            text_taps=(0,),
            max_sequence_length=128,
            adapter=AdapterConfig(rank=64, alpha=128),
        ),
        dtype="bfloat16",
        mixed_precision="bf16",
        head=QueryHeadConfig(width=1280, num_queries=4, num_attention_heads=8),
        objective="fidelity",
        soft_labels=False,
        optimiser=OptimiserConfig(learning_rate=5e-5, weight_decay=0.01, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=1000),
        batch_size=4,
        gradient_accumulation_steps=1,
        num_epochs=1,
        ema_decay=0.995,
        gradient_checkpointing=False,
        seed=42,
        validation=ValidationConfig(every=1000, num_pairs=1000, sigmas=(0.3, 0.4, 0.5), batch_size=4),
        save_every=2000,
    )
