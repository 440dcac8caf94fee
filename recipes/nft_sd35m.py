"""DiffusionNFT on Stable Diffusion 3.5 Medium, rewarded by DiNa-LRM on latents.

Published (arXiv 2509.16117, and the release's configuration `sd3_pickscore`): 512 x 512; 10 steps in training and 40 in
evaluation, never any guidance; 48 prompts an update, 24 samples each; b = 1, advantages limited to 5, pull to the
reference 1e-4; the old policy follows by `min(0.001 n, 0.5)`; nine noisings of each sample in one optimiser step; LoRA
of rank 32 and alpha 64 on attention; AdamW at 3e-4, weight decay 1e-4, gradient norm 1; an average of weights (0.9 every 8 steps,
so 0.987 each step); text of 128 T5 tokens. GenEval went from 0.24 to 0.98 in 1,000 updates.

For several rewards the release takes b = 0.1 and 25 steps; for OCR b = 0.1 and the second schedule of the old
policy: `--set algorithm.strength=0.1 --set sampler.num_steps=25`, `--set algorithm.decay=2`.

Deviations. Samples come from Euler's steps (the release: a second-order solver). Levels are drawn uniformly (the release:
nine of the sampler's ten). Advantages are divided by the spread of a process's six groups, 144 samples (the release: of
all 1152); 8 processes x 6 prompts are the 48. A prompt's group stands in one batch, hence gradient checkpointing.
bfloat16 where the release has float16.

The reward: DiNa-LRM's raw score at sigma 0.4; scale and shift cancel in an advantage.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    EvaluationConfig,
    LatentRewardConfig,
    NftConfig,
    OptimiserConfig,
    PromptFileConfig,
    SamplerConfig,
    ScheduleConfig,
)
from dina_lrm.backbones import AdapterConfig


def recipe() -> AlignConfig:
    """`--set prompts.path=FILE --set evaluation.prompts.path=FILE`; a reward of your own: `--set rewards.0.model=FOLDER`."""
    return AlignConfig(
        base="stabilityai/stable-diffusion-3.5-medium",
        out=Path("runs/nft-sd35m"),
        prompts=PromptFileConfig(path=Path("data/pickscore/train.txt")),
        algorithm=NftConfig(
            group_size=24,
            strength=1.0,
            kl=1e-4,
            decay=1,
            noisings=9,
            advantage_limit=5.0,
            spread="batch",
        ),
        rewards=(LatentRewardConfig(name="dina", model="liuhuohuo/DiNa-LRM-SD35M-12layers", sigmas=(0.4,)),),
        adapter=AdapterConfig(rank=32, alpha=64),
        sampler=SamplerConfig(num_steps=10, guidance=1.0, height=512, width=512),
        dtype="bfloat16",
        mixed_precision="bf16",
        max_sequence_length=128,
        cut_prompts=True,
        optimiser=OptimiserConfig(learning_rate=3e-4, weight_decay=1e-4, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=0),
        prompts_per_update=6,
        micro_batches=1,
        num_updates=1000,
        ema_decay=0.987,
        gradient_checkpointing=True,
        seed=42,
        evaluation=EvaluationConfig(
            every=10,
            prompts=PromptFileConfig(path=Path("data/pickscore/test.txt")),
            num_prompts=128,
            sampler=SamplerConfig(num_steps=40, guidance=1.0, height=512, width=512),
            batch_size=16,
        ),
        save_every=30,
    )
