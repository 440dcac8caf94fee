"""A small model and a folder of votes that follow it, so that its calibration is known."""

from __future__ import annotations

from pathlib import Path

import torch

from dina_lrm.backbones import BackboneConfig
from dina_lrm.checkpoint import BaseReference, LoadedModel, ModelConfig
from dina_lrm.data import Candidate, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.evals import prompt_seed
from dina_lrm.heads import MeanPoolHeadConfig
from dina_lrm.model import build_network
from dina_lrm.scoring import RewardModel
from tests.training.fake import CHANNELS, load_fake

DEVIATION = 0.15  # of the votes, in utility


def voted_model() -> RewardModel:
    """A random head on the fake backbone."""
    config = ModelConfig(
        backbone=BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None),
        base=BaseReference(name="fake"),
        head=MeanPoolHeadConfig(width=8),
    )
    torch.manual_seed(2)
    network = build_network(load_fake(config.backbone, "fake"), config.head)
    return RewardModel(LoadedModel(network.eval().requires_grad_(False), config))


def voted_folder(model: RewardModel, folder: Path, prompts: int = 24, per_prompt: int = 4) -> PreferenceData:
    """Nine voters a pair prefer a with `Phi(margin / DEVIATION)`, the margin being the model's at sigma 0.3."""
    g = torch.Generator().manual_seed(7)
    texts = [f"thing {i}" for i in range(prompts)]
    latents = torch.randn(prompts * per_prompt, CHANNELS, 4, 4, generator=g)
    latents += 2 * torch.randn(len(latents), CHANNELS, 1, 1, generator=g)
    latents = latents.half().float()
    candidates, pairs = [], []
    for number, text in enumerate(texts):
        mine = range(number * per_prompt, (number + 1) * per_prompt)
        candidates += [Candidate(f"c{i}", text, i) for i in mine]
        utility = model.score(
            prompts=[text], latents=latents[list(mine)], sigmas=(0.3,), seed=prompt_seed(text, 0)
        ).utility
        for a in range(per_prompt):
            for b in range(a):
                p = torch.special.ndtr((utility[a] - utility[b]) / DEVIATION)
                votes = int((torch.rand(9, generator=g) < p).sum())
                ids = (f"c{mine[a]}", f"c{mine[b]}")
                if votes > 4:
                    pairs.append(PreferencePair(text, *ids, votes, 9 - votes))
                else:
                    pairs.append(PreferencePair(text, *ids[::-1], 9 - votes, votes))
    return write_preference_data(folder, candidates, latents, {"validation": pairs}, "voted", {"class": "FakeBackbone"})
