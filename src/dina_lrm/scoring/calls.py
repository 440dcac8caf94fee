"""Requests of a reward client as bytes, and its answers as records; who carries them is no matter here.

Everything travels as one blob: tensors as they are (latents in float32), pictures as PNG, which loses nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dina_lrm.errors import ConfigError, DataError, ShapeError, ValueRangeError, WorkError
from dina_lrm.images import to_rgb
from dina_lrm.noise import Adaptive, Fusion, NoiseEnsemble
from dina_lrm.scoring.arguments import pair_of
from dina_lrm.scoring.protocol import Candidate, Images
from dina_lrm.scoring.samples import Samples
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
from dina_lrm.types import Comparison, Conditioning, NoisedState, Ranking, Reward

T = TypeVar("T")
Q = TypeVar("Q", bound=WireRequest)
R = TypeVar("R", covariant=True)
AS_THEY_ARE = (torch.float32, torch.float16, torch.bfloat16)
LONGEST_DEADLINE_MS = 24 * 3600 * 1000


class WireRecord(Protocol[R]):
    """A reply that stands for a record."""

    def record(self) -> R:
        """The record, on the CPU."""
        ...


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Attributes:
        path: on the server.
        content: the body, a blob.
        read: body of a good answer to the record.
    """

    path: str
    content: bytes
    read: Callable[[bytes], T]


@dataclass(frozen=True)
class Options:
    """What every request says besides its candidates.

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


def score_calls(
    options: Options,
    prompts: Sequence[str] | None,
    conditioning: Conditioning | None,
    images: Images | None,
    latents: Tensor | None,
    ensemble: NoiseEnsemble,
    seed: int | Sequence[int],
    noise: Tensor | None,
) -> list[Call[Reward]]:
    """`RewardFunction.score`, in as many requests as its samples need.

    Args:
        options: of the client.
        prompts: one, or one a sample; or conditioning.
        conditioning: encoded prompts.
        images: pictures or pixels; or latents.
        latents: clean latents.
        ensemble: levels and draws.
        seed: one, or one a sample.
        noise: in place of seeded noise.

    Raises:
        InputError: nothing that could be asked.
    """
    tensors, files = _candidates(images, latents)
    if noise is not None:
        tensors["noise"] = _without_gradient("noise", noise).float()
    if (prompts is None) == (conditioning is None):
        raise ShapeError("give either prompts or conditioning, and not both")
    if isinstance(prompts, str) or (prompts is not None and not prompts):
        raise ValueRangeError(f"prompts must be a list of one or more strings, got {prompts!r}")
    seeds = int(seed) if isinstance(seed, int) else tuple(int(one) for one in seed)
    samples = Samples(tensors, files, _conditioning(conditioning), tuple(prompts or ()), seeds)
    return [
        _score_call(options, part, _looks(ensemble))
        for part in samples.parts(len(ensemble.sigmas) * ensemble.max_draws)
    ]


def state_calls(options: Options, state: NoisedState, conditioning: Conditioning) -> list[Call[Reward]]:
    """`RewardFunction.score_state`, in as many requests as its samples need."""
    if not len(state):
        raise ShapeError("a state to be scored must hold one sample or more, got none")
    latents = _without_gradient("noised_latents", state.noised_latents).float()
    tensors = {"noised_latents": latents, "sigma": state.sigma.detach().float()}
    samples = Samples(tensors, (), _conditioning(conditioning), (), 0)
    return [_score_call(options, part, {}) for part in samples.parts()]


def _score_call(options: Options, samples: Samples, looks: dict[str, Any]) -> Call[Reward]:
    request = _request(
        ScoreRequest,
        model=options.model,
        deadline_ms=options.deadline_ms,
        prompts=samples.prompts,
        seed=samples.seed,
        **looks,
    )
    return _call(
        "/v1/score_latents", samples.blob, request, lambda body: _record(RewardReply.model_validate_json, body)
    )


def compare_call(
    options: Options,
    prompt: str | None,
    conditioning: Conditioning | None,
    pair: tuple[Candidate, Candidate],
    ensemble: NoiseEnsemble,
    seed: int,
    tie_band: float,
) -> Call[Comparison]:
    """`RewardFunction.compare`.

    Args:
        options: of the client.
        prompt: of both; or conditioning.
        conditioning: the encoded prompt.
        pair: a and b.
        ensemble: levels and draws.
        seed: of the noise.
        tie_band: probabilities within so much of 1/2 are a tie.
    """
    images, latents = pair_of(*pair)
    tensors = _of_one(prompt, conditioning, images, latents)
    request = _request(
        CompareRequest,
        model=options.model,
        deadline_ms=options.deadline_ms,
        prompt=prompt,
        seed=int(seed),
        tie_band=tie_band,
        **_looks(ensemble),
    )
    return _call("/v1/compare", tensors, request, lambda body: _record(ComparisonReply.model_validate_json, body))


def rank_call(
    options: Options,
    prompt: str | None,
    conditioning: Conditioning | None,
    images: Images | None,
    latents: Tensor | None,
    ensemble: NoiseEnsemble,
    seed: int,
    tie_band: float,
) -> Call[Ranking]:
    """`RewardFunction.rank`.

    Args:
        options: of the client.
        prompt: of all; or conditioning.
        conditioning: the encoded prompt.
        images: pictures or pixels; or latents.
        latents: clean latents.
        ensemble: levels and draws.
        seed: of the noise.
        tie_band: probabilities within so much of 1/2 are a tie.
    """
    tensors = _of_one(prompt, conditioning, images, latents)
    request = _request(
        RankRequest,
        model=options.model,
        deadline_ms=options.deadline_ms,
        prompt=prompt,
        seed=int(seed),
        tie_band=tie_band,
        **_looks(ensemble),
    )
    return _call("/v1/rank", tensors, request, lambda body: _record(RankingReply.model_validate_json, body))


def ensemble_of(sigmas: Sequence[float], draws: int | Adaptive, fusion: Fusion, antithetic: bool) -> NoiseEnsemble:
    """Levels and draws, refused here as a model in this process refuses them."""
    return NoiseEnsemble(tuple(float(sigma) for sigma in sigmas), draws, fusion, antithetic)


def _call(path: str, tensors: dict[str, Tensor], request: WireRequest, read: Callable[[bytes], T]) -> Call[T]:
    return Call(path, pack(tensors, {REQUEST: request.model_dump_json()}), read)


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
) -> dict[str, Tensor]:
    tensors, files = _candidates(images, latents)
    if (prompt is None) == (conditioning is None):
        raise ShapeError("give either prompts or conditioning, and not both")
    return Samples(tensors, files, _conditioning(conditioning), (), 0).blob


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


def _request(kind: type[Q], **values: Any) -> Q:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "the request"
        raise ValueRangeError(f"{name} cannot be sent: {first['msg']}, got {first['input']!r:.80}") from error


def _record(read: Callable[[str | bytes], WireRecord[T]], body: bytes) -> T:
    try:
        return read(body).record()
    except (ValidationError, DataError) as error:
        raise WorkError(
            f"the server's answer is none of version 1 ({str(error).splitlines()[0]}): {body[:80]!r}; is it a dina-lrm server?"
        ) from error
