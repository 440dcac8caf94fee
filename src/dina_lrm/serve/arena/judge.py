"""What the served model thinks of the arena's candidates: asked in the background, kept in the store."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dina_lrm.backbones import check_latents
from dina_lrm.errors import DataError, DinaError
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.questions import Candidates
from dina_lrm.serve.arena.source import CandidateSource
from dina_lrm.serve.engine import Engine
from dina_lrm.serve.models import ModelPool

CLIENT = "arena"  # takes turns with the server's other clients
log = logging.getLogger(__name__)


class Judge(ABC):
    """Utilities of candidates, and what a margin of them means."""

    @property
    @abstractmethod
    def identity(self) -> str | None:
        """Under which its utilities are kept: it changes when they would. None while nobody judges."""

    @property
    def objection(self) -> str | None:
        """Why it will not judge these candidates, in a sentence; None if it has nothing against them."""
        return None

    @abstractmethod
    async def utilities(self, prompt: str, candidates: Sequence[str]) -> list[float]:
        """Utility of each candidate of a prompt; all meet the same noise."""

    @abstractmethod
    def probability(self, margins: Tensor) -> Tensor:
        """P(first preferred) for utility margins `[n]`."""


class EngineJudge(Judge):
    """The server's default model, whichever that is at the time: models come and go.

    Attributes:
        source: of pictures or latents.
        ensemble: how candidates are looked at.
        seed: of the noise.
    """

    def __init__(self, pool: ModelPool, source: CandidateSource, ensemble: NoiseEnsemble, seed: int) -> None:
        self.source, self.ensemble, self.seed = source, ensemble, seed
        self._pool = pool
        self._identities: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()
        self._objections: WeakKeyDictionary[Engine, str | None] = WeakKeyDictionary()

    @property
    def identity(self) -> str | None:
        engine = self._engine()
        if engine is None or self._objection(engine) is not None:
            return None
        if engine not in self._identities:
            told = f"{engine.model.fingerprint}\n{self.ensemble!r}\n{self.seed}"
            self._identities[engine] = f"{engine.name}:{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        return self._identities[engine]

    @property
    def objection(self) -> str | None:
        engine = self._engine()
        return None if engine is None else self._objection(engine)

    async def utilities(self, prompt: str, candidates: Sequence[str]) -> list[float]:
        engine = self._pool.engine()
        conditioning = await engine.encode_prompts([prompt], client=CLIENT)
        latents = await asyncio.to_thread(self.source.latents, candidates)
        images = await asyncio.to_thread(self.source.pictures, candidates) if latents is None else None

        def gather(model: RewardModel) -> Candidates:
            with torch.no_grad():
                return model.candidates(conditioning=conditioning, images=images, latents=latents, seed=self.seed)

        gathered = await engine.call(gather, client=CLIENT)
        reward = await engine.answer(engine.model.asker.score(gathered, self.ensemble), client=CLIENT)
        utilities: list[float] = reward.utility.tolist()
        return utilities

    def probability(self, margins: Tensor) -> Tensor:
        return self._pool.engine().model.probability(margins, self.ensemble.sigmas, self.ensemble.max_draws)

    def _objection(self, engine: Engine) -> str | None:
        """Latents that another VAE made say nothing to this model, however well it scores them."""
        if engine not in self._objections:
            self._objections[engine], backbone = None, engine.model.network.backbone
            try:
                check_latents(self.source.name, self.source.backbone, backbone)
            except DataError as error:
                # Voters read it: the base may be named by where it lies.
                self._objections[engine] = str(error).replace(f" {backbone.base!r}", "")
                log.warning("arena: model %s does not judge: %s", engine.name, error)
        return self._objections[engine]

    def _engine(self) -> Engine | None:
        try:
            return self._pool.engine()
        except DinaError:
            return None
