"""A run of seconds on the tiny random pipeline of the tests: does everything, learns nothing worth having."""

from __future__ import annotations

from pathlib import Path

from dina_lrm.backbones import AdapterConfig, BackboneConfig
from dina_lrm.heads import QueryHeadConfig
from dina_lrm.training import OptimiserConfig, ScheduleConfig, TrainConfig, ValidationConfig


def recipe() -> TrainConfig:
    """`data`, `base` and `out` are to be set: `--set data=FOLDER --set base=PIPELINE --set out=FOLDER`."""
    return TrainConfig(
        data=Path("preferences"),
        base="pipeline",
        out=Path("runs/tiny"),
        backbone=BackboneConfig(
            image_taps=(1, 2), text_taps=(1, 2), max_sequence_length=16, adapter=AdapterConfig(rank=2, alpha=4)
        ),
        head=QueryHeadConfig(width=16, num_queries=2, num_attention_heads=2),
        optimiser=OptimiserConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(kind="cosine", warm_up=2),
        batch_size=4,
        num_steps=8,
        ema_decay=0.9,
        device="cpu",
        validation=ValidationConfig(every=4, num_pairs=8, sigmas=(0.1, 0.7), batch_size=4),
        save_every=3,
    )
