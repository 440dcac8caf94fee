"""Does a score depend on its neighbours, or on the day? A score alone against the same in batches, and twice the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dina_lrm.scoring import RewardModel
from dina_lrm.types import Conditioning

ALLOWED = 1e-5
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "sd3-tiny"
RULES: dict[str, dict[str, Any]] = {
    "one draw, sigma 0.4": {"sigmas": (0.4,)},
    "mean of 0.2, 0.5, 0.7": {"sigmas": (0.2, 0.5, 0.7)},
    "tokens of 0.2, 0.5, 0.7": {"sigmas": (0.2, 0.5, 0.7), "fusion": "tokens"},
}


def main(quick: bool = True) -> list[dict[str, Any]]:
    """A row a way to ask: largest difference from the score alone, by batch size; quick compares 8 samples, else all 64."""
    model = RewardModel.from_pretrained(GOLDEN / "reward", base=str(GOLDEN / "pipeline"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, 16, 8, 8, generator=generator)
    prompts = model.encode_prompts(["a cat", "two dogs on a hill", "", "a fox in the snow, oil painting"], 16)
    conditioning = prompts[torch.arange(64) % 4]
    return [
        {"asked": name, **_compare(model, latents, conditioning, 8 if quick else 64, rule)}
        for name, rule in RULES.items()
    ]


@torch.no_grad()
def _compare(
    model: RewardModel, latents: torch.Tensor, conditioning: Conditioning, alone: int, rule: dict[str, Any]
) -> dict[str, Any]:
    def scored(start: int, stop: int) -> torch.Tensor:
        return model.score(latents=latents[start:stop], conditioning=conditioning[start:stop], seed=7, **rule).reward

    singles = torch.cat([scored(i, i + 1) for i in range(alone)])
    row: dict[str, Any] = {"spread of rewards": float(scored(0, 64).std())}
    for size in (3, 8, 64):
        batches = torch.cat([scored(start, min(start + size, 64)) for start in range(0, 64, size)])
        row[f"batch of {size}"] = float((batches[:alone] - singles).abs().max())
    row["allowed"] = ALLOWED
    row["twice the same seed"] = "bit-equal" if torch.equal(scored(0, 64), scored(0, 64)) else "DIFFERENT"
    return row
