"""The paper's model: Stable Diffusion 3.5 Medium, 12 of 24 blocks, LoRA and query head, on HPDv3.

Published hyperparameters (DiNa-LRM, section 4; the release's configuration): 8 GPUs x 4 pairs, one epoch of 0.8 M pairs.
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
        data=Path("data/hpdv3-sd35m"),
        base="stabilityai/stable-diffusion-3.5-medium",
        out=Path("runs/sd35m-thurstone"),
        backbone=BackboneConfig(
            kind="sd3",
            image_taps=(4, 8, 12),
            text_taps=(4, 8, 12),
            max_sequence_length=128,
            adapter=AdapterConfig(rank=64, alpha=128),
        ),
        dtype="bfloat16",
        mixed_precision="bf16",
        head=QueryHeadConfig(num_queries=4, num_attention_heads=8),
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
