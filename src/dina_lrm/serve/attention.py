"""Where the head looks in a picture: maps of its queries' attention, for the page."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Candidates
from dina_lrm.scoring.wire import Seed, Sigma, WireReply, WireRequest

__all__ = ["AttentionReply", "AttentionRequest", "attention_maps"]


class AttentionRequest(WireRequest):
    """`POST /v1/attention`: one picture under one prompt.

    Attributes:
        model: which of the server's models is asked; null asks its first.
        prompt: of the picture.
        images: one file in base64; left out where it travels in a part of a multipart body.
        sigma: noise level at which the picture is read.
        seed: of the noise; the first draw of a score with this seed meets the same.
        deadline_ms: maps that would come later are not wanted.
    """

    model: str | None = None
    prompt: str
    images: tuple[str, ...] = ()
    sigma: Sigma = 0.4
    seed: Seed = 0
    deadline_ms: int | None = Field(None, ge=1, le=24 * 3600 * 1000)


class AttentionReply(WireReply):
    """Maps of attention over the picture, in the order of its rows; each sums to 1.

    Attributes:
        model: the name the server knows it by.
        sigma: noise level at which the picture was read.
        seed: what the noise was drawn from.
        queries: a map `[h][w]` of each query of the head.
        mean: their mean `[h][w]`: utility is the mean over queries too.
    """

    model: str
    sigma: float
    seed: int
    queries: list[list[list[float]]]
    mean: list[list[float]]

    @classmethod
    def of(cls, maps: Tensor, model: str, sigma: float, seed: int) -> Self:
        """From maps `[q h w]`.

        Args:
            maps: on any device.
            model: its name.
            sigma: of the reading.
            seed: of its noise.
        """
        maps = maps.detach().float().cpu()
        return cls(model=model, sigma=sigma, seed=seed, queries=maps.tolist(), mean=maps.mean(dim=0).tolist())


def attention_maps(model: RewardModel, candidates: Candidates, sigma: float) -> Tensor:
    """Attention of each query of the head over one picture, as the first draw of a score reads it.

    Args:
        model: with a head that attends.
        candidates: one.
        sigma: noise level.

    Returns:
        `[q h w]`, each map with sum 1.

    Raises:
        ConfigError: the head has no attention.
    """
    question = model.asker.score(candidates, NoiseEnsemble((sigma,)))
    with torch.no_grad():
        reading = next(question)
        question.close()
        return model.network.attention(reading.state, reading.conditioning)[0]
