"""How often voters and the model choose alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dina_lrm.metrics import wilson_interval
from dina_lrm.serve.arena.store import Vote


class Agreement(BaseModel):
    """Votes and the model, on pairs that were picked in one way.

    Attributes:
        votes: answers that are no skip.
        decided: of them those that chose a side.
        ties: of them those that chose none.
        skips: pairs that were passed over; in no other number.
        compared: decided votes whose candidates the model has scored.
        agreed: of those, on which the model prefers the same side; a model that is indifferent agrees by half.
        share: `agreed / compared`; null where nothing was compared.
        interval: 95 % interval of that share (Wilson), as if votes were independent.
        expected: the share that the model itself expects, from its probabilities; null where nothing was compared.
    """

    model_config = ConfigDict(frozen=True)

    votes: int
    decided: int
    ties: int
    skips: int
    compared: int
    agreed: float
    share: float | None
    interval: tuple[float, float]
    expected: float | None

    @classmethod
    def of(
        cls, votes: Sequence[Vote], utilities: Mapping[str, float], probability: Callable[[Tensor], Tensor] | None
    ) -> Self:
        """Count.

        Args:
            votes: of any kind.
            utilities: of the candidates that the model has scored.
            probability: P(first preferred) for margins `[n]`; None where nobody judges.
        """
        decided = [vote for vote in votes if vote.choice in ("left", "right")]
        known = [vote for vote in decided if vote.left in utilities and vote.right in utilities]
        margins = torch.tensor([utilities[vote.left] - utilities[vote.right] for vote in known], dtype=torch.float64)
        sides = torch.tensor([1.0 if vote.choice == "left" else -1.0 for vote in known], dtype=torch.float64)
        agreed = float(((margins.sign() * sides + 1) / 2).sum())
        expected = None
        if known and probability is not None:
            certainty = probability(margins)
            expected = float(torch.maximum(certainty, 1 - certainty).mean())
        return cls(
            votes=sum(vote.choice != "skip" for vote in votes),
            decided=len(decided),
            ties=sum(vote.choice == "tie" for vote in votes),
            skips=sum(vote.choice == "skip" for vote in votes),
            compared=len(known),
            agreed=agreed,
            share=agreed / len(known) if known else None,
            interval=wilson_interval(agreed, len(known)),
            expected=expected,
        )
