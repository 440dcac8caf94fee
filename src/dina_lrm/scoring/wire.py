"""What travels between a reward server and its clients: requests and replies, JSON but for the tensors.

Requests refuse unknown keys and values of the wrong kind; replies let unknown keys pass, so that an older client reads a newer
server. Tensors travel as one blob (`pack`, `unpack`) whose metadata carries the request as JSON under the name `REQUEST`.

    POST /v1/score_latents, /v1/compare, /v1/rank with content type `BLOB_TYPE`:
        candidates   latents [b c h w]; or noised_latents [b c h w] and sigma [b] (score only); or pixels [b 3 y x] in 0..1;
                     or image.0, image.1, ... each the bytes of a picture's file, U8 [n]
        prompts      prompt_embeds [b l e] or [1 l e], with pooled_prompt_embeds [b p] and prompt_mask [b l] where the model has
                     them; or the request's `prompts` in words
        noise        [b c h w], in place of seeded noise (score only)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, FailFast, Field
from torch import Tensor

from dina_lrm.errors import DataError
from dina_lrm.noise import Adaptive, Fusion
from dina_lrm.scoring.blobs import Blob, pack, require_finite, unpack
from dina_lrm.types import TIE_BAND, Comparison, Ranking, Reward

__all__ = [
    "BLOB_TYPE",
    "JSON_TYPE",
    "MODEL_HEADER",
    "PROTOCOL_HEADER",
    "PROTOCOL_VERSION",
    "REQUEST",
    "AdaptiveOptions",
    "Blob",
    "CompareRequest",
    "ComparisonReply",
    "ErrorBody",
    "ErrorReply",
    "HealthReply",
    "LoadRequest",
    "ModelFacts",
    "ModelsReply",
    "ProtocolReply",
    "RankRequest",
    "RankingReply",
    "RewardReply",
    "ScoreOptions",
    "ScoreRequest",
    "pack",
    "require_finite",
    "unpack",
]

PROTOCOL_VERSION = "1"
PROTOCOL_HEADER = "x-drm-protocol-version"
MODEL_HEADER = "x-drm-model"
BLOB_TYPE = "application/octet-stream"
JSON_TYPE = "application/json"
REQUEST = "request"  # the name of the request's JSON in a blob's metadata, and of its part in a multipart body

MAX_LEVELS = 64
MAX_DRAWS = 1024
MAX_SAMPLES = 4096
Texts = Annotated[tuple[str, ...], FailFast(), Field(max_length=MAX_SAMPLES)]
Sigma = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TieBand = Annotated[float, Field(ge=0, lt=0.5)]


class WireRequest(BaseModel):
    """Base of what a client says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class WireReply(BaseModel):
    """Base of what a server answers."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class AdaptiveOptions(WireRequest):
    """Draw until decided.

    Attributes:
        max_draws: the budget: draws of noise at every level.
        error_rate: how often, at most, the answer may differ from that of the whole budget.
        standard_error: to be reached by a score, in utility; needed there.
    """

    max_draws: int = Field(9, ge=2, le=MAX_DRAWS)
    error_rate: float = Field(0.05, gt=0, lt=0.5)
    standard_error: float | None = Field(None, gt=0)

    @classmethod
    def of(cls, rule: Adaptive) -> Self:
        """From the record that Python callers give."""
        return cls(max_draws=rule.max_draws, error_rate=rule.error_rate, standard_error=rule.standard_error)


class ScoreOptions(WireRequest):
    """How to look at candidates; the words are those of `RewardModel.score`.

    Attributes:
        sigmas: noise levels.
        draws: noise tensors a level; not read where `adaptive` is given.
        adaptive: a rule that settles the number of draws.
        fusion: "mean", "weighted" or "tokens".
        antithetic: draws come in pairs of a noise and its negative.
        seed: of the noise: one for all, or (where samples are scored apart) one a sample; null lets the server draw one,
            which the reply names.
        deadline_ms: an answer that would come later is not wanted: the server gives up with status 504.
    """

    sigmas: tuple[Sigma, ...] = Field((0.4,), min_length=1, max_length=MAX_LEVELS)
    draws: int = Field(1, ge=1, le=MAX_DRAWS)
    adaptive: AdaptiveOptions | None = None
    fusion: Fusion = "mean"
    antithetic: bool = False
    seed: Seed | Annotated[tuple[Seed, ...], Field(max_length=MAX_SAMPLES)] | None = 0
    deadline_ms: int | None = Field(None, ge=1, le=24 * 3600 * 1000)

    @property
    def rule(self) -> int | Adaptive:
        """The draws as Python callers say them."""
        if self.adaptive is None:
            return self.draws
        return Adaptive(self.adaptive.max_draws, self.adaptive.error_rate, self.adaptive.standard_error)


class ScoreRequest(ScoreOptions):
    """`POST /v1/score_images`, and in a blob `POST /v1/score_latents`.

    Attributes:
        model: which of the server's models is asked; null asks its first.
        prompts: one, or one a sample; left out where a blob carries `prompt_embeds`.
        images: files of pictures in base64; left out where they travel in parts of a multipart body or in a blob.
    """

    model: str | None = None
    prompts: Texts = ()
    images: Texts = ()


class CompareRequest(ScoreOptions):
    """`POST /v1/compare`: two candidates, a and b in this order.

    Attributes:
        draws: noise tensors a level.
        model: which of the server's models is asked; null asks its first.
        prompt: of both; left out where a blob carries `prompt_embeds`.
        images: two files in base64; left out where they travel otherwise.
        tie_band: probabilities within so much of 1/2 are a tie.
    """

    draws: int = Field(4, ge=1, le=MAX_DRAWS)
    model: str | None = None
    prompt: str | None = None
    images: Texts = ()
    tie_band: TieBand = TIE_BAND


class RankRequest(ScoreOptions):
    """`POST /v1/rank`: candidates of one prompt.

    Attributes:
        model: which of the server's models is asked; null asks its first.
        prompt: of all; left out where a blob carries `prompt_embeds`.
        images: files in base64; left out where they travel otherwise.
        tie_band: the best and the runner-up are a tie where the probability lies within so much of 1/2.
    """

    model: str | None = None
    prompt: str | None = None
    images: Texts = ()
    tie_band: TieBand = TIE_BAND


class LoadRequest(WireRequest):
    """`POST /v1/models`: load a model from the server's disk or the hub.

    Attributes:
        name: to ask for it by.
        path: model folder or hub id.
        base: pipeline folder or hub id; null takes the one that the model names.
        revision: of the model's hub repository.
        dtype: of the base weights.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    path: str = Field(min_length=1, max_length=4096)
    base: str | None = Field(None, min_length=1, max_length=4096)
    revision: str | None = Field(None, min_length=1, max_length=256)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class ProtocolReply(WireReply):
    """The answer of `POST /v1/score`, protocol version 1; the keys after `raw_scores` are additions that its clients ignore.

    Attributes:
        protocol_version: always "1".
        raw_scores: utility of each sample, uncalibrated.
        rewards: calibrated.
        seeds: what each sample's noise was drawn from.
        model: who answered.
    """

    protocol_version: str
    raw_scores: list[float]
    rewards: list[float]
    seeds: list[int]
    model: str


class RewardReply(WireReply):
    """A `Reward`, and whose it is.

    Attributes:
        model: the name the server knows it by.
        revision: of the model's files.
        reward: calibrated utility of each sample.
        utility: mean over the draws.
        utility_std: spread over draws and levels.
        standard_error: of the utility, over noise.
        draws: utility of each draw of each sample; null where a sample was decided before the draw.
        sigmas: noise level of each draw.
        seed: what the noise was drawn from; null if it was given.
        spent: noised states that the network read for each sample.
        prompts_cut: places of prompts that are longer than the model reads, of which the rest counts for nothing.
    """

    model: str
    revision: str | None = None
    reward: list[float]
    utility: list[float]
    utility_std: list[float]
    standard_error: list[float]
    draws: list[list[float | None]]
    sigmas: list[float]
    seed: int | list[int] | None = None
    spent: list[int]
    prompts_cut: list[int] = []

    @property
    def samples(self) -> int:
        """How many candidates it tells of."""
        return len(self.reward)

    @classmethod
    def of(cls, reward: Reward, model: str, revision: str | None) -> Self:
        """From the record.

        Args:
            reward: on any device.
            model: its name.
            revision: of its files.

        Returns:
            The reply; every float32 passes through JSON unchanged.
        """
        reward = reward.map(torch.Tensor.detach).to("cpu")
        drawn = [[None if math.isnan(value) else value for value in row] for row in reward.draws.tolist()]
        return cls(
            model=model,
            revision=revision,
            reward=reward.reward.tolist(),
            utility=reward.utility.tolist(),
            utility_std=reward.utility_std.tolist(),
            standard_error=reward.standard_error.tolist(),
            draws=drawn,
            sigmas=reward.sigmas.tolist(),
            seed=list(reward.seed) if isinstance(reward.seed, tuple) else reward.seed,
            spent=reward.spent.tolist(),
        )

    def record(self) -> Reward:
        """The record, on the CPU.

        Raises:
            DataError: the lists have different lengths.
        """
        columns = (self.reward, self.utility, self.utility_std, self.standard_error, self.draws, self.spent)
        if len({len(column) for column in columns}) != 1 or len({len(row) for row in self.draws}) != 1:
            raise DataError("the server's reply has lists of different lengths for the same samples")
        drawn = [[math.nan if value is None else value for value in row] for row in self.draws]
        return Reward(
            reward=_floats(self.reward),
            utility=_floats(self.utility),
            utility_std=_floats(self.utility_std),
            standard_error=_floats(self.standard_error),
            draws=torch.tensor(drawn, dtype=torch.float32),
            sigmas=_floats(self.sigmas),
            seed=tuple(self.seed) if isinstance(self.seed, list) else self.seed,
            spent=torch.tensor(self.spent, dtype=torch.int64),
        )


class ComparisonReply(WireReply):
    """A `Comparison`, and whose it is.

    Attributes:
        model: the name the server knows it by.
        revision: of the model's files.
        seed: what the noise was drawn from.
        probability: that a is preferred to b.
        interval: 95 % interval of that probability over noise.
        margin: utility of a less utility of b.
        reward_a: calibrated.
        reward_b: calibrated.
        tie_band: probabilities within so much of 1/2 are a tie.
        decided: False if an adaptive comparison spent its budget before it was sure.
        spent: noised states that the network read for the two.
        verdict: what is preferred.
        prompts_cut: places of prompts that are longer than the model reads, of which the rest counts for nothing.
    """

    model: str
    revision: str | None = None
    seed: int | None = None
    probability: float
    interval: tuple[float, float]
    margin: float
    reward_a: float
    reward_b: float
    tie_band: float
    decided: bool
    spent: int
    verdict: Literal["a", "b", "tie"]
    prompts_cut: list[int] = []

    @property
    def samples(self) -> int:
        """How many candidates it tells of."""
        return 2

    @classmethod
    def of(cls, comparison: Comparison, model: str, revision: str | None, seed: int | None) -> Self:
        """From the record.

        Args:
            comparison: what was found.
            model: its name.
            revision: of its files.
            seed: of the noise.
        """
        return cls(
            model=model,
            revision=revision,
            seed=seed,
            probability=comparison.probability,
            interval=comparison.interval,
            margin=comparison.margin,
            reward_a=comparison.reward_a,
            reward_b=comparison.reward_b,
            tie_band=comparison.tie_band,
            decided=comparison.decided,
            spent=comparison.spent,
            verdict=comparison.verdict,
        )

    def record(self) -> Comparison:
        """The record."""
        return Comparison(
            probability=self.probability,
            interval=self.interval,
            margin=self.margin,
            reward_a=self.reward_a,
            reward_b=self.reward_b,
            tie_band=self.tie_band,
            decided=self.decided,
            spent=self.spent,
        )


class RankingReply(WireReply):
    """A `Ranking`.

    Attributes:
        order: places of the candidates, best first.
        reward: of each candidate, in the order given.
        lead: the best (a) against the runner-up (b); null for a single candidate.
        decided: False if an adaptive ranking spent its budget before its top was sure.
        prompts_cut: places of prompts that are longer than the model reads, of which the rest counts for nothing.
    """

    order: list[int]
    reward: RewardReply
    lead: ComparisonReply | None = None
    decided: bool
    prompts_cut: list[int] = []

    @property
    def samples(self) -> int:
        """How many candidates it tells of."""
        return self.reward.samples

    @classmethod
    def of(cls, ranking: Ranking, model: str, revision: str | None, seed: int | None) -> Self:
        """From the record.

        Args:
            ranking: what was found.
            model: its name.
            revision: of its files.
            seed: of the noise.
        """
        lead = None if ranking.lead is None else ComparisonReply.of(ranking.lead, model, revision, seed)
        reward = RewardReply.of(ranking.reward, model, revision)
        return cls(order=list(ranking.order), reward=reward, lead=lead, decided=ranking.decided)

    def record(self) -> Ranking:
        """The record.

        Raises:
            DataError: the order does not name each candidate once, or lists have different lengths.
        """
        if sorted(self.order) != list(range(self.samples)):
            raise DataError(f"the server's reply orders {self.samples} candidates as {self.order}")
        lead = None if self.lead is None else self.lead.record()
        return Ranking(tuple(self.order), self.reward.record(), lead, self.decided)


class ModelFacts(WireReply):
    """What a server tells of one of its models.

    Attributes:
        name: to ask for it by.
        state: "loading", "ready", "draining" or "failed".
        default: it answers where no model is named.
        revision: of the model's files.
        detail: why it failed; null otherwise.
    """

    name: str
    state: str
    default: bool = False
    revision: str | None = None
    detail: str | None = None


class ModelsReply(WireReply):
    """`GET /v1/models`.

    Attributes:
        models: all that the server knows.
    """

    models: list[ModelFacts]


class HealthReply(WireReply):
    """`GET /healthz`.

    Attributes:
        status: "ready" (200), "loading", "draining" or "failed" (503).
    """

    status: Literal["ready", "loading", "draining", "failed"]


class ErrorBody(WireReply):
    """Why there is no answer.

    Attributes:
        kind: a word for programs.
        message: a sentence for people.
        type: class of the `InputError` that a model in this process would raise; left out where it would raise none.
    """

    kind: str
    message: str
    type: str | None = None


class ErrorReply(WireReply):
    """Every answer but those of 2xx.

    Attributes:
        error: what went wrong.
    """

    error: ErrorBody


def _floats(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
