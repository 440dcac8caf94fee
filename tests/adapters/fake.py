"""A reward function without a network: a number that depends on all that it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dina_lrm.errors import ImageError
from dina_lrm.types import Reward


def brightness(image) -> float:
    return float(np.asarray(image.convert("RGB"), dtype=np.float64).mean()) / 255


@dataclass
class FakeModel:
    """Utility is the mean of the picture or latents, plus the prompt's length; the reward is ten times that.

    What is wholly black cannot be scored, nor can a batch that holds it.
    """

    calls: list[dict[str, Any]] = field(default_factory=list)

    def score(
        self,
        *,
        prompts=None,
        conditioning=None,
        images=None,
        latents=None,
        sigmas=(0.4,),
        draws=1,
        fusion="mean",
        antithetic=False,
        seed=0,
    ) -> Reward:
        told = dict(sigmas=sigmas, draws=draws, fusion=fusion, antithetic=antithetic, seed=seed)
        self.calls.append(dict(prompts=prompts, conditioning=conditioning, images=images, latents=latents, **told))
        if images is not None:
            worth = torch.tensor([brightness(image) for image in images])
            if not worth.all():
                raise ImageError(f"image {int((worth == 0).nonzero()[0])} is black")
        else:
            worth = latents.flatten(1).mean(dim=1)
        if prompts is not None:
            words = torch.tensor([float(len(prompt)) for prompt in prompts])
        else:
            words = conditioning.prompt_embeds.flatten(1).mean(dim=1)
        return self.reward(worth + words, sigmas, seed)

    def score_state(self, state, conditioning) -> Reward:
        self.calls.append(dict(state=state, conditioning=conditioning))
        return self.reward(state.noised_latents.flatten(1).mean(dim=1), state.sigma[:1].tolist(), None)

    @staticmethod
    def reward(utility, sigmas, seed) -> Reward:
        utility = utility.float()
        spread = torch.full_like(utility, 0.5).detach()
        one = torch.ones(len(utility), dtype=torch.int64)
        sigmas = torch.tensor(tuple(sigmas))
        return Reward(10 * utility, utility, spread, spread, utility.unsqueeze(1), sigmas, seed, one)
