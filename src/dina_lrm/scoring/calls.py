"""Requests of a reward client as bytes, and its answers as records; who carries them is no matter here.

Everything travels as one blob: tensors as they are (latents in float32), pictures as PNG, which loses nothing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dina_lrm.errors import ConfigError, DataError, PromptCutWarning, ShapeError, ValueRangeError, WorkError
from dina_lrm.images import to_rgb
from dina_lrm.noise import Adaptive, Fusion, NoiseEnsemble
from dina_lrm.scoring.arguments import first_of, levels_of, pair_of, seeds_of
from dina_lrm.scoring.protocol import Candidate, Images
from dina_lrm.scoring.samples import Samples, joined, joined_states
from dina_lrm.scoring.wire import (
    REQUEST,
    AdaptiveOptions,
    CompareRequest,
    ComparisonReply,
    RankingReply,
    RankRequest,
    RewardReply,
    ScoreRequest,
    WireRequest,
    pack,
)
from dina_lrm.types import TIE_BAND, Comparison, Conditioning, NoisedState, Ranking, Reward

T = TypeVar("T")
Q = TypeVar("Q", ScoreRequest, CompareRequest, RankRequest)
R = TypeVar("R", covariant=True)
AS_THEY_ARE = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_DEADLINE_MS = 24 * 3600 * 1000


class WireRecord(Protocol[R]):
    """A reply that stands for a record."""

    @property
    def samples(self) -> int:
        """How many candidates it tells of."""
        ...

    @property
    def prompts_cut(self) -> Sequence[int]:
        """Places of prompts that were not read to their end."""
        ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Self:
        """Read it."""
        ...

    def record(self) -> R:
        """The record, on the CPU."""
        ...


@dataclass(frozen=True)
class Call(Generic[T]):
    """One question: its requests, and how their answers are read.

    Attributes:
        path: on the server.
        bodies: of the requests, each a blob; several where the samples of a score need more than one.
        read: bodies of good answers, in the order of the requests, to the record.
    """

    path: str
    bodies: tuple[bytes, ...]
    read: Callable[[Sequence[bytes]], T]


@dataclass(frozen=True)
class Calls:
    """The questions of a `RewardFunction` as calls, refused here where a model in this process would refuse them.

    Attributes:
        model: which of the server's models is asked; None asks its first.
        timeout: seconds after which nobody waits for the answer.
    """

    model: str | None
    timeout: float

    @property
    def deadline_ms(self) -> int:
        """The same for the server, which then drops the work."""
        return max(1, min(int(self.timeout * 1000), LONGEST_DEADLINE_MS))

    def score(
        self,
        *,
        prompts: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int | Sequence[int] = 0,
        noise: Tensor | None = None,
    ) -> Call[Reward]:
        """As `RewardFunction.score`; `noise` as in `RewardModel.score`. What only a model in this process can know is not asked."""
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        tensors, files = _candidates(images, latents)
        if noise is not None:
            tensors["noise"] = _without_gradient("noise", noise).float()
        if (prompts is None) == (conditioning is None):
            raise ShapeError("give either prompts or conditioning, and not both")
        if isinstance(prompts, str) or (prompts is not None and not prompts):
            raise ValueRangeError(f"prompts must be a list of one or more strings, got {prompts!r}")
        samples = Samples(tensors, files, _conditioning(conditioning), tuple(prompts or ()), seeds_of(seed))
        return self._score(samples.parts(len(ensemble.sigmas) * ensemble.max_draws), joined, **_looks(ensemble))

    def score_state(self, state: NoisedState, conditioning: Conditioning) -> Call[Reward]:
        """As `RewardFunction.score_state`, without gradients."""
        if not len(state):
            raise ShapeError("a state to be scored must hold one sample or more, got none")
        latents = _without_gradient("noised_latents", state.noised_latents).float()
        tensors = {"noised_latents": latents, "sigma": state.sigma.detach().float()}
        return self._score(Samples(tensors, (), _conditioning(conditioning), (), 0).parts(), joined_states)

    def compare(
        self,
        *,
        a: Candidate,
        b: Candidate,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 4,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = TIE_BAND,
    ) -> Call[Comparison]:
        """As `RewardFunction.compare`."""
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        samples = _of_one(prompt, conditioning, *pair_of(a, b))
        request = self._request(
            CompareRequest, prompt=prompt, seed=seeds_of(seed), tie_band=tie_band, **_looks(ensemble)
        )
        body = _packed(samples.blob, request)
        return Call("/v1/compare", (body,), lambda told: _record(ComparisonReply, told[0], samples))

    def rank(
        self,
        *,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = TIE_BAND,
    ) -> Call[Ranking]:
        """As `RewardFunction.rank`."""
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        samples = _of_one(prompt, conditioning, images, latents)
        request = self._request(RankRequest, prompt=prompt, seed=seeds_of(seed), tie_band=tie_band, **_looks(ensemble))
        body = _packed(samples.blob, request)
        return Call("/v1/rank", (body,), lambda told: _record(RankingReply, told[0], samples))

    def best_of(
        self,
        k: int = 1,
        *,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 1,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = TIE_BAND,
    ) -> Call[Ranking]:
        """As `RewardFunction.best_of`."""
        whole = self.rank(
            prompt=prompt,
            conditioning=conditioning,
            images=images,
            latents=latents,
            sigmas=sigmas,
            draws=draws,
            fusion=fusion,
            antithetic=antithetic,
            seed=seed,
            tie_band=tie_band,
        )
        return replace(whole, read=lambda told: first_of(whole.read(told), k))

    def _score(
        self, parts: Sequence[Samples], join: Callable[[Sequence[Reward]], Reward], **looks: Any
    ) -> Call[Reward]:
        bodies = [
            _packed(part.blob, self._request(ScoreRequest, prompts=part.prompts, seed=part.seed, **looks))
            for part in parts
        ]

        def read(told: Sequence[bytes]) -> Reward:
            return join([_record(RewardReply, one, part) for one, part in zip(told, parts, strict=True)])

        return Call("/v1/score_latents", tuple(bodies), read)

    def _request(self, kind: type[Q], **values: Any) -> Q:
        try:
            return kind(model=self.model, deadline_ms=self.deadline_ms, **values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "the request"
            raise ValueRangeError(f"{name} cannot be sent: {first['msg']}, got {first['input']!r:.80}") from error


def _packed(tensors: dict[str, Tensor], request: WireRequest) -> bytes:
    return pack(tensors, {REQUEST: request.model_dump_json()})


def _looks(ensemble: NoiseEnsemble) -> dict[str, Any]:
    adaptive = ensemble.draws if isinstance(ensemble.draws, Adaptive) else None
    told: dict[str, Any] = dict(sigmas=ensemble.sigmas, fusion=ensemble.fusion, antithetic=ensemble.antithetic)
    if adaptive is None:
        return {**told, "draws": ensemble.draws}
    return {**told, "adaptive": AdaptiveOptions.of(adaptive)}


def _candidates(images: Images | None, latents: Tensor | None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Tensors, or files of pictures."""
    if (images is None) == (latents is None):
        raise ShapeError("give either images or latents, and not both")
    if latents is not None:
        if latents.ndim < 4 or not len(latents):
            raise ShapeError(f"latents must be [b c h w] with one sample or more, got {list(latents.shape)}")
        return {"latents": _without_gradient("latents", latents).float()}, []
    if isinstance(images, Tensor):
        if images.ndim < 4 or not len(images):
            raise ShapeError(f"pixels must be [b 3 y x] with one sample or more, got {list(images.shape)}")
        return {"pixels": _without_gradient("images", images).float()}, []
    assert images is not None
    if isinstance(images, str | Image.Image) or not all(isinstance(image, Image.Image) for image in images):
        raise ShapeError(f"images must be a list of PIL pictures or pixels [b 3 y x], got {images!r:.80}")
    if not images:
        raise ShapeError("images must hold one or more pictures, got none")
    return {}, [_png(image) for image in images]


def _conditioning(conditioning: Conditioning | None) -> dict[str, Tensor]:
    if conditioning is None:
        return {}
    given = {
        "prompt_embeds": conditioning.prompt_embeds,
        "pooled_prompt_embeds": conditioning.pooled_prompt_embeds,
        "prompt_mask": conditioning.prompt_mask,
    }
    return {name: _exact(_without_gradient(name, tensor)) for name, tensor in given.items() if tensor is not None}


def _of_one(
    prompt: str | None, conditioning: Conditioning | None, images: Images | None, latents: Tensor | None
) -> Samples:
    tensors, files = _candidates(images, latents)
    if (prompt is None) == (conditioning is None):
        raise ShapeError("give either prompts or conditioning, and not both")
    return Samples(tensors, files, _conditioning(conditioning), () if prompt is None else (prompt,), 0)


def _exact(tensor: Tensor) -> Tensor:
    """In a dtype that the wire has, without loss but of float64."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype not in AS_THEY_ARE else tensor


def _without_gradient(name: str, tensor: Tensor) -> Tensor:
    """Refuse to lose a gradient in silence."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            f"{name} need a gradient, and none comes back over HTTP; give {name}.detach(), or score with a RewardModel in "
            "this process"
        )
    return tensor.detach()


def _png(image: Image.Image) -> Tensor:
    """The picture as the model would see it, RGB on white, as the bytes of a PNG file."""
    file = io.BytesIO()
    to_rgb(image).save(file, format="PNG", compress_level=1)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _record(kind: type[WireRecord[T]], body: bytes, asked: Samples) -> T:
    """The record in an answer, which must be one to what was asked.

    Prompts that the model did not read to their end are told of, as it would in this process.
    """
    try:
        reply = kind.model_validate_json(body)
        record = reply.record()
        _require_answer(reply, asked)
    except (ValidationError, DataError) as error:
        raise WorkError(
            f"the server's answer is none of version 1 ({str(error).splitlines()[0]}): {body[:80]!r}; is it a dina-lrm server?"
        ) from error
    for place in reply.prompts_cut:
        warnings.warn(
            f"prompt {asked.prompts[place]!r:.200} is longer than the server's model reads, and the rest of it counts for "
            "nothing; shorten it",
            PromptCutWarning,
            stacklevel=2,
        )
    return record


def _require_answer(reply: WireRecord[Any], asked: Samples) -> None:
    """Refuse an answer to another question: in a part of several it would shift the rewards of all that follow."""
    if reply.samples != len(asked):
        raise DataError(f"it tells of {reply.samples} samples, and {len(asked)} were asked for")
    if not all(0 <= place < len(asked.prompts) for place in reply.prompts_cut):
        raise DataError(f"it tells of cut prompts at {reply.prompts_cut}, of {len(asked.prompts)} that were given")
