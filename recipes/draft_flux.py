"""DRaFT-1 on FLUX.1 dev, driven by a DiNa-LRM of FLUX on latents.

Nobody published hyperparameters of DRaFT on FLUX, so each has its source: the gradient through the last step alone (K = 1)
with LoRA, AdamW and the step's activations computed again is DRaFT's (arXiv 2309.17400, on Stable Diffusion 1.4);
512 x 512, guidance 3.5, and LoRA of rank 32 and alpha 64 are those of flow_grpo's recipes for FLUX, and so are 28 steps, those of
its evaluation: a last step of 6 is no fine step. AdamW at 1e-4, the reward at sigma 0.4 and divided by 10, and 150 updates are those
of the paper's ReFL on Stable Diffusion 3.5 Medium (arXiv 2602.11146), for the two differ in one thing: ReFL jumps from a late
level to the end, DRaFT takes the step there. 64 samples an update: 8 processes x 4 micro batches x 2 prompts.

FLUX.1 dev is distilled from guidance: 3.5 is an input of its network, in rollouts, gradients and evaluation alike, and
`sampler.guidance=1` says that nothing is added to it. Less variance at three times the gradient's cost:
`--set algorithm.noisings=2` (DRaFT-LV).

The reward is the model that `dina-lrm train flux_thurstone` makes; one of Stable Diffusion is refused.
"""

from __future__ import annotations

from pathlib import Path

from dina_lrm.alignment import (
    AlignConfig,
    DraftConfig,
    EvaluationConfig,
    LatentRewardConfig,
    OptimiserConfig,
    PromptFileConfig,
    SamplerConfig,
    ScheduleConfig,
)
from dina_lrm.backbones import AdapterConfig


def recipe() -> AlignConfig:
    """`--set prompts.path=FILE --set evaluation.prompts.path=FILE --set rewards.0.model=FOLDER`."""
    return AlignConfig(
        base="black-forest-labs/FLUX.1-dev",
        out=Path("runs/draft-flux"),
        prompts=PromptFileConfig(path=Path("data/pickscore/train.txt")),
        algorithm=DraftConfig(last_steps=1, noisings=0, kl=0.0),
        rewards=(LatentRewardConfig(name="dina", model="runs/flux-thurstone/model", sigmas=(0.4,), weight=0.1),),
        adapter=AdapterConfig(rank=32, alpha=64),
        sampler=SamplerConfig(num_steps=28, guidance=1.0, height=512, width=512),
        dtype="bfloat16",
        mixed_precision="bf16",
        cut_prompts=True,
        optimiser=OptimiserConfig(learning_rate=1e-4, weight_decay=1e-4, max_grad_norm=1.0),
        schedule=ScheduleConfig(kind="constant", warm_up=0),
        prompts_per_update=2,
        micro_batches=4,
        num_updates=150,
        ema_decay=0.987,
        gradient_checkpointing=True,
        seed=42,
        evaluation=EvaluationConfig(
            every=10,
            prompts=PromptFileConfig(path=Path("data/pickscore/test.txt")),
            num_prompts=128,
            batch_size=8,
        ),
        save_every=10,
    )
