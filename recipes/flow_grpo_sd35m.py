"""Flow-GRPO on Stable Diffusion 3.5 Medium, rewarded by DiNa-LRM on latents.

Published (arXiv 2505.05470, and the release's configuration `pickscore_sd3`): 512 x 512; 10 steps in training and 40 in
evaluation, guidance 4.5 in both and in the gradient; noise level 0.7 in every step but the last; 24 samples a prompt; clip
1e-4, advantages limited to 5, KL 0.01 (0.04 with GenEval and OCR, whose rewards are rules) against the adapter switched off;
LoRA of rank 32 and alpha 64 on attention; AdamW at 3e-4, weight decay 1e-4, gradient norm 1; an average of weights (0.9 every
8 steps, so 0.987 each step); text of 128 T5 tokens.

Where paper and release disagree the paper was taken: advantages are divided by the spread of their own group (the release
divides by that of all samples: `--set algorithm.spread=batch` takes that of a micro batch).

Deviations. The release samples 48 prompts and takes two optimiser steps from them; here every update samples afresh, 24
prompts by 8 processes x 3 micro batches, so the ratio is 1 and the clip waits for `algorithm.epochs` above 1. A
prompt's group stands in one batch (the release spreads it over GPUs), hence gradient checkpointing. bfloat16 where the
release has float16. The release runs until it is stopped; 2000 updates are our bound, and the monitor may end it earlier.

The reward: DiNa-LRM's raw score at sigma 0.4; scale and shift cancel in a group. The fast variant is:
`--set algorithm.window=3 --set algorithm.noise.kind=cps --set algorithm.noise.level=0.8 --set algorithm.clip=1e-5 --set algorithm.kl=0`.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    FlowGrpoConfig,
    LatentRewardConfig,
    OptimiserConfig,
    PromptFileConfig,
    SamplerConfig,
    ScheduleConfig,
    StepNoiseConfig,
)
from dina_lrm.backbones import AdapterConfig


def recipe() -> AlignConfig:
    """`--set prompts.path=FILE --set evaluation.prompts.path=FILE`; a reward of your own: `--set rewards.0.model=FOLDER`."""
    return AlignConfig(
        base="stabilityai/stable-diffusion-3.5-medium",
        out=Path("runs/flow-grpo-sd35m"),
        prompts=PromptFileConfig(path=Path("data/pickscore/train.txt")),
        algorithm=FlowGrpoConfig(
            group_size=24,
            noise=StepNoiseConfig(kind="flow", level=0.7),
            clip=1e-4,
            kl=0.01,
            spread="group",
            advantage_limit=5.0,
            epochs=1,
        ),
        rewards=(LatentRewardConfig(name="dina", model="liuhuohuo/DiNa-LRM-SD35M-12layers", sigmas=(0.4,)),),
        adapter=AdapterConfig(rank=32, alpha=64),
        sampler=SamplerConfig(num_steps=10, guidance=4.5, height=512, width=512),
        dtype="bfloat16",
        mixed_precision="bf16",
        max_sequence_length=128,
        cut_prompts=True,
        optimiser=OptimiserConfig(learning_rate=3e-4, weight_decay=1e-4, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=0),
        prompts_per_update=1,
        micro_batches=3,
        num_updates=2000,
        ema_decay=0.987,
        gradient_checkpointing=True,
        seed=42,
        evaluation=EvaluationConfig(
            every=60,
            prompts=PromptFileConfig(path=Path("data/pickscore/test.txt")),
            num_prompts=128,
            sampler=SamplerConfig(num_steps=40, guidance=4.5, height=512, width=512),
            batch_size=16,
        ),
        save_every=60,
    )
