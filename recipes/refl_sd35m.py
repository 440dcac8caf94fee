"""ReFL on Stable Diffusion 3.5 Medium, driven by DiNa-LRM on latents: the paper's own alignment experiment.

Published (DiNa-LRM, arXiv 2602.11146, section 5, and its release): 512 x 512, 40 Euler steps with guidance 4.5; without gradient
down to one of the last ten, where one step without guidance learns; LoRA of rank 32 and alpha 64 on attention; AdamW at 1e-4; the
reward at sigma 0.4, its raw score divided by 10; 150 updates, no pretraining loss, no pull towards the reference. Hacking
was not obvious before 150 updates, so go on from there with an eye on the monitor.

Where paper and release disagree the paper was taken: 256 samples an update (the release has 64), here 8 processes x 4
micro batches x 8 prompts. What the release meant and did not do is done: the averaged weights are kept, measured and exported
(flow_grpo's average, on which it is built: 0.9 every 8 steps, so 0.987 each step), its script starts, and what is
trained is float32 beside a bfloat16 base. Weight decay and the limit of the gradient's norm are flow_grpo's.

Prompts: one a line, such as the Pick-a-Pic prompts that come with flow_grpo (`dataset/pickscore/train.txt` and `test.txt`).
They are encoded once, all of them before the first update, 1.7 MB each: for 25,000 of them have 43 GB of memory, or take fewer.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    LatentRewardConfig,
    OptimiserConfig,
    PromptFileConfig,
    ReflConfig,
    SamplerConfig,
    ScheduleConfig,
)
from dina_lrm.backbones import AdapterConfig


def recipe() -> AlignConfig:
    """`--set prompts.path=FILE --set evaluation.prompts.path=FILE`; a reward of your own: `--set rewards.0.model=FOLDER`."""
    return AlignConfig(
        base="stabilityai/stable-diffusion-3.5-medium",
        out=Path("runs/refl-sd35m"),
        prompts=PromptFileConfig(path=Path("data/pickscore/train.txt")),
        algorithm=ReflConfig(late=0.25, kl=0.0, pretraining=0.0),
        rewards=(
            LatentRewardConfig(name="dina", model="liuhuohuo/DiNa-LRM-SD35M-12layers", sigmas=(0.4,), weight=0.1),
        ),
        adapter=AdapterConfig(rank=32, alpha=64),
        sampler=SamplerConfig(num_steps=40, guidance=4.5, height=512, width=512),
        dtype="bfloat16",
        mixed_precision="bf16",
        max_sequence_length=128,
        cut_prompts=True,
        optimiser=OptimiserConfig(learning_rate=1e-4, weight_decay=1e-4, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=0),
        prompts_per_update=8,
        micro_batches=4,
        num_updates=150,
        ema_decay=0.987,
        gradient_checkpointing=True,
        seed=42,
        evaluation=EvaluationConfig(
            every=10,
            prompts=PromptFileConfig(path=Path("data/pickscore/test.txt")),
            num_prompts=128,
            batch_size=16,
        ),
        save_every=10,
    )
