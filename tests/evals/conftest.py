"""A small preference folder whose truth is written into its latents, and a model that reads it there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dina_lrm.data import Candidate, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.preference import Calibration, Thurstone
from dina_lrm.types import Conditioning, Reward

PROMPTS = tuple(f"thing {i}" for i in range(6))
PER_PROMPT = 4


@dataclass
class KnownModel:
    """Utility is `sign * quality`, less 10 where the prompt shown is not the candidate's own, plus noise of a level.

    Channel 0 of the latents holds quality, channel 1 the number of the candidate's prompt.
    """

    sign: float = 1.0
    prompt_matters: bool = False
    noise_scale: float = 0.0
    likelihood: Thurstone = Thurstone()
    calibration: Calibration = Calibration()
    asked: list[dict[str, object]] = field(default_factory=list)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        numbers = torch.tensor([float(p.split()[1]) if p else -1.0 for p in prompts])
        return Conditioning(numbers[:, None, None].expand(-1, 3, 2), numbers[:, None])

    def score(
        self,
        *,
        conditioning: Conditioning,
        latents: Tensor,
        sigmas: tuple[float, ...],
        draws: int,
        fusion: str,
        antithetic: bool,
        seed: list[int],
        max_batch_size: int,
    ) -> Reward:
        self.asked.append({"batch": len(latents), "sigmas": sigmas, "draws": draws, "fusion": fusion, "seed": seed})
        noise = NoiseEnsemble(sigmas, draws).noise(latents, seed)[0, :, 0, 0, 0]
        utility = self.sign * latents[:, 0].mean((1, 2)) + self.noise_scale * max(sigmas) * noise
        if self.prompt_matters:
            matches = latents[:, 1].mean((1, 2)).round() == conditioning.pooled_prompt_embeds[:, 0]
            utility = torch.where(matches, utility, -utility)
        zeros = torch.zeros_like(utility)
        spent = torch.ones(len(utility), dtype=torch.int64)
        return Reward(utility, utility, zeros, zeros, utility[:, None], torch.tensor(sigmas), tuple(seed), spent)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PreferenceData:
    """Six prompts with four candidates each, all pairs; the last pair of each prompt is a tie."""
    candidates, pairs, latents = [], [], []
    for number, prompt in enumerate(PROMPTS):
        for place in range(PER_PROMPT):
            quality = place + 0.1 * number
            latents.append(torch.stack([torch.full((2, 2), quality), torch.full((2, 2), float(number))]))
            candidates.append(
                Candidate(f"c{number}-{place}", prompt, latents_row=len(latents) - 1, oracle_utility=quality)
            )
        for worse in range(PER_PROMPT):
            for better in range(worse + 1, PER_PROMPT):
                tied = (worse, better) == (0, 1)
                pairs.append(
                    PreferencePair(
                        prompt,
                        f"c{number}-{better}",
                        f"c{number}-{worse}",
                        votes_chosen=3 if tied else 7,
                        votes_rejected=3 if tied else 1,
                        votes_tied=1,
                        kind="concept" if better == 3 else "style",
                    )
                )
    where = Path(tmp_path_factory.mktemp("preferences")) / "known"
    return write_preference_data(where, candidates, torch.stack(latents), {"test": pairs, "empty": []}, "known")


@pytest.fixture
def model() -> KnownModel:
    return KnownModel()
