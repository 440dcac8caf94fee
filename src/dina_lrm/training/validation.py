"""Measuring while training: the same pairs through the same noise each time, so that two measurements compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dina_lrm.data import PairTable, PreferenceData, collate
from dina_lrm.encoding import PromptTable
from dina_lrm.metrics import pair_credit
from dina_lrm.noise import ForwardProcess
from dina_lrm.preference import Likelihood, nll
from dina_lrm.runtime.seeds import derived_generator
from dina_lrm.training.config import ValidationConfig
from dina_lrm.training.step import pair_utilities

__all__ = ["LevelScore", "Validation"]


@dataclass(frozen=True)
class LevelScore:
    """What was measured at one noise level.

    Attributes:
        sigma: the level.
        accuracy: of decided pairs; a predicted tie is half right.
        loss: mean negative log-likelihood of the votes, whatever the objective: comparable between runs.
        margin: mean utility of chosen less utility of rejected.
    """

    sigma: float
    accuracy: float
    loss: float
    margin: float


class Validation:
    """A fixed set of pairs with fixed noise."""

    def __init__(self, data: PreferenceData, prompts: PromptTable, config: ValidationConfig) -> None:
        """Choose the pairs.

        Args:
            data: preference folder.
            prompts: with the split's prompts encoded.
            config: which pairs, levels and seed.
        """
        self._data, self._prompts, self._config = data, prompts, config
        self._pairs = validation_pairs(data, config)

    @torch.no_grad()
    def measure(
        self,
        network: nn.Module,
        process: ForwardProcess,
        likelihood: Likelihood,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        alike: bool = False,
    ) -> Tensor:
        """Sums over this rank's share of the pairs, `[k 5]`: credit, decided, loss, margin, pairs; ranks add up.

        Each pair has noise of its own, a function of the seed and its place: no neighbour changes it. `alike` runs the network
        equally often on all ranks: one that has no pair left reads the first again, and counts it not.
        """
        was_training = network.training
        network.eval()
        sums = torch.zeros(len(self._config.sigmas), 5, dtype=torch.float64)
        own = np.arange(rank, len(self._pairs), world_size)
        most = -(-len(self._pairs) // world_size) if alike else len(own)
        for start in range(0, most, self._config.batch_size):
            part = own[start : start + self._config.batch_size]
            places = part if len(part) else np.zeros(1, dtype=np.int64)
            batch = collate(self._data, self._pairs, places, self._prompts).to(device)
            shape = batch.latents_chosen.shape[1:]
            seed = self._config.seed
            noise = torch.stack(
                [torch.randn(shape, generator=derived_generator(seed, "validation", int(i))) for i in places]
            ).to(device)
            for level, value in enumerate(self._config.sigmas):
                sigma = torch.full((len(batch),), value, device=device)
                chosen, rejected = pair_utilities(network, batch, process, sigma, noise)
                law = likelihood.choice()
                log_prob = law.log_prob(chosen, rejected, sigma)
                losses = nll(log_prob, batch.target, law.log_prob(rejected, chosen, sigma))
                credit = pair_credit(chosen - rejected, batch.target)
                counted = (
                    credit.credit.nansum(),
                    credit.decided.sum(),
                    losses.sum(),
                    (chosen - rejected).sum(),
                    torch.tensor(len(batch)),
                )
                if len(part):
                    sums[level] += torch.stack([c.double().cpu() for c in counted])
        network.train(was_training)
        return sums

    def scores(self, sums: Tensor) -> list[LevelScore]:
        """Sums over all ranks, `[k 5]`, to one score a level."""
        return [
            LevelScore(sigma, credit / decided if decided else float("nan"), loss / pairs, margin / pairs)
            for sigma, (credit, decided, loss, margin, pairs) in zip(self._config.sigmas, sums.tolist(), strict=True)
        ]


def validation_pairs(data: PreferenceData, config: ValidationConfig) -> PairTable:
    """At most `num_pairs` of the split, evenly spaced."""
    pairs = data.pairs(config.split)
    count = min(config.num_pairs, len(pairs))
    return pairs[np.linspace(0, len(pairs) - 1, count).round().astype(np.int64)]
