"""FLUX.1 dev: all 19 two-stream blocks of 57, LoRA and query head, on HPDv3.

Published hyperparameters (the release's configuration): 8 GPUs x 1 pair x 4 micro steps. The release fed the network a time
1000 times too small; here it is the library's own.
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
        data=Path("data/hpdv3-flux"),
        base="black-forest-labs/FLUX.1-dev",
        out=Path("runs/flux-thurstone"),
        backbone=BackboneConfig(
            kind="flux",
            image_taps=(8, 12, 16, 19),
            text_taps=(8, 12, 16, 19),
            max_sequence_length=128,
            adapter=AdapterConfig(rank=64, alpha=128),
        ),
        dtype="bfloat16",
        mixed_precision="bf16",
        head=QueryHeadConfig(width=1536, num_queries=4, num_attention_heads=8, project_in=True),
        objective="fidelity",
        soft_labels=False,
        optimiser=OptimiserConfig(learning_rate=5e-5, weight_decay=0.01, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=1000),
        batch_size=1,
        gradient_accumulation_steps=4,
        num_epochs=1,
        ema_decay=0.995,
        gradient_checkpointing=True,
        seed=42,
        validation=ValidationConfig(every=1000, num_pairs=1000, sigmas=(0.3, 0.4, 0.5), batch_size=4),
        save_every=2000,
    )
