"""verl-omni: `compute_score` of one sample, awaited, with a model in the trainer's process.

A reward is named in the trainer's configuration, and its other keys become keyword arguments:

    reward.reward_functions.dina: {path: pkg://dina_lrm.adapters.verl_omni, name: compute_score, model_path: my-model}

Rewards of a step are asked for one at a time and all at once: those that wait in the same event loop are scored together.
With a server, see `verl_omni_http`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.adapters.asking import DEFAULT, Asking
from dina_lrm.adapters.pictures import as_pictures
from dina_lrm.errors import ConfigError, DinaError, InputError, NoAnswerError, ShapeError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.types import Conditioning, Reward

ComputeScore: TypeAlias = Callable[..., Coroutine[Any, Any, dict[str, float]]]
LATENT_CHANNELS = 16
MOST_AT_ONCE = 16
TRAINERS_OWN = {"data_source", "reward_router_address", "reward_model_tokenizer", "model_name", "sampling_params"}
ARTIFACT = "image_latent"


def rollout_latents(solution_image: Any, extra_info: Mapping[str, Any]) -> Tensor | None:
    """Clean latents of one sample `[1 16 h w]`: the rollout's own, or what it gave in place of a picture; None for neither.

    Older versions of the trainer have `latents_clean`; newer ones hand over media by name, `media_artifacts`, each with its
    `data` and a `spec`.

    Args:
        solution_image: what the trainer calls the picture: `[16 h w]` with `output_type=latent`.
        extra_info: of the sample; with `output_type=both` it has `latents_clean`, or `image_latent` of `media_artifacts`.

    Raises:
        ShapeError: no latents of one picture.
    """
    latents = extra_info.get("latents_clean")
    artifact = (extra_info.get("media_artifacts") or {}).get(ARTIFACT)
    if latents is None and artifact is not None:
        latents = artifact.data
        layout = getattr(getattr(artifact, "spec", None), "layout", "CHW")
        if layout != "CHW":
            raise ShapeError(f"{ARTIFACT} must be of the layout CHW, got {layout!r}")
    if latents is None and isinstance(solution_image, Tensor) and solution_image.ndim >= 3:
        latents = solution_image if solution_image.shape[-3] == LATENT_CHANNELS else None
    return None if latents is None else of_one(latents, "latents_clean", 4)


def rollout_conditioning(extra_info: Mapping[str, Any]) -> Conditioning | None:
    """The text states that the picture was made from; None where the rollout kept none."""
    embeds, pooled = extra_info.get("prompt_embeds"), extra_info.get("pooled_prompt_embeds")
    if embeds is None:
        return None
    return Conditioning(
        of_one(embeds, "prompt_embeds", 3), None if pooled is None else of_one(pooled, "pooled_prompt_embeds", 2)
    )


def of_one(value: Any, name: str, rank: int) -> Tensor:
    """A tensor of one sample with its batch axis.

    Args:
        value: of `rank` axes, or one less.
        name: for the message.
        rank: with the batch axis.

    Raises:
        ShapeError: no tensor, of another rank, or of several samples.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} must be a tensor, got {type(value).__name__}; does the rollout keep it?")
    value = value.detach()
    if value.ndim == rank - 1:
        value = value.unsqueeze(0)
    if value.ndim != rank or len(value) != 1:
        raise ShapeError(f"{name} must be of one sample with {rank - 1} or {rank} axes, got {list(value.shape)}")
    return value


@dataclass(frozen=True, eq=False)
class Sample:
    """What is known of one sample: latents or a picture, text states or a prompt."""

    prompt: str
    latents: Tensor | None
    conditioning: Conditioning | None
    picture: Image.Image | None

    @staticmethod
    def of(solution_image: Any, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> Sample:
        """From the trainer's arguments: latents where there are any, else the picture.

        The prompt is needed where the rollout kept no text states.

        Args:
            solution_image: picture `[3 y x]` in 0..1, latents `[16 h w]`, or a PIL picture.
            ground_truth: the prompt.
            extra_info: of the sample.

        Raises:
            InputError: there is no prompt to score under.
            ShapeError: tensors that are not of one sample.
        """
        info = extra_info or {}
        latents, prompt = rollout_latents(solution_image, info), ground_truth if isinstance(ground_truth, str) else ""
        conditioning = None if latents is None else rollout_conditioning(info)
        if conditioning is None and not prompt.strip():
            raise InputError(
                f"ground_truth must be the prompt that the sample is scored under, got {ground_truth!r:.80}"
            )
        if latents is not None:
            return Sample(prompt, latents, conditioning, None)
        if isinstance(solution_image, Tensor):
            return Sample(prompt, None, None, as_pictures(of_one(solution_image, "solution_image", 4))[0])
        return Sample(prompt, None, None, as_pictures([solution_image])[0])

    @property
    def key(self) -> Hashable:
        """Samples of one key are scored in one call."""
        if self.latents is None:
            return None
        text = self.conditioning
        pooled = None if text is None or text.pooled_prompt_embeds is None else text.pooled_prompt_embeds.shape
        return self.latents.shape, None if text is None else text.prompt_embeds.shape, pooled


def scorer(
    model: RewardFunction, asking: Asking = DEFAULT, score_scale: float = 1.0, score_bias: float = 0.0
) -> ComputeScore:
    """An async `compute_score(data_source, solution_image, ground_truth, extra_info, **kwargs)`.

    Scores latents where the rollout kept them (with its own text states, or with `ground_truth` as prompt), else the
    picture. A sample that cannot be scored raises, and costs the others nothing.

    Args:
        model: local or behind HTTP.
        asking: which noise is looked at, and which number is given.
        score_scale: the trainer's score is value * score_scale + score_bias.
        score_bias: see there.

    Returns:
        The function. Its keyword arguments are those that the trainer adds; others are refused.
    """
    together = _Together(model, asking)

    async def compute_score(
        data_source: Any, solution_image: Any, ground_truth: Any, extra_info: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[str, float]:
        del data_source
        refuse_unknown(kwargs)
        found = await together.ask(Sample.of(solution_image, ground_truth, extra_info))
        value = float(asking.values(found)[0])
        return {
            "score": value * score_scale + score_bias,
            "dina_reward": float(found.reward[0]),
            "dina_utility": float(found.utility[0]),
            "dina_standard_error": float(found.standard_error[0]),
        }

    return compute_score


def refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    """Settings that nobody reads are misspelt.

    Args:
        kwargs: what a function of the trainer was given beyond its own arguments.

    Raises:
        ConfigError: naming those that are not the trainer's own.
    """
    unknown = sorted(set(kwargs) - TRAINERS_OWN)
    if unknown:
        raise ConfigError(f"the reward's configuration has settings that are not known here: {', '.join(unknown)}")


async def compute_score(
    data_source: Any,
    solution_image: Any,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    model_path: str | None = None,
    base_path: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    noise_level: float = 0.4,
    noise_seed: int | None = 0,
    value: Literal["reward", "utility"] = "reward",
    score_scale: float = 1.0,
    score_bias: float = 0.0,
    **kwargs: Any,
) -> dict[str, float]:
    """`scorer` for a configuration file: the model is loaded at the first call, once a process, beside the event loop.

    Args:
        data_source: not read.
        solution_image: picture or latents of one sample.
        ground_truth: the prompt.
        extra_info: of the sample.
        model_path: reward model, a folder or hub id.
        base_path: its base; None takes the one that the model names.
        device: where to put it.
        dtype: of the base weights.
        noise_level: sigma.
        noise_seed: of the noise, the same for all samples; None draws one for each.
        value: "reward", which is calibrated, or "utility": the raw score that a server of the protocol gives.
        score_scale: the score is the value times this.
        score_bias: plus this.
        kwargs: what else the trainer passes; not read.

    Returns:
        `score`, and what else is known under names that begin with `dina_`.

    Raises:
        ConfigError: no model is named, a dtype that torch does not have, or a setting that is not known.
    """
    refuse_unknown(kwargs)
    if model_path is None:
        raise ConfigError(
            "the reward's configuration must name a model_path (or use dina_lrm.adapters.verl_omni_http with a server)"
        )
    asking = Asking(sigmas=(noise_level,), seed=noise_seed, value=value)
    settings = _Settings(model_path, base_path, device, dtype, asking, score_scale, score_bias)
    made = _scorers.get(settings)
    if made is None:
        made = await asyncio.get_running_loop().run_in_executor(_loader, _loaded, settings)
    return await made(data_source, solution_image, ground_truth, extra_info)


@dataclass(frozen=True)
class _Settings:
    """What two calls have in common that one scorer answers."""

    path: str
    base: str | None
    device: str
    dtype: str
    asking: Asking
    score_scale: float
    score_bias: float


_scorers: dict[_Settings, ComputeScore] = {}
# One thread, so that nothing is loaded twice, and of its own, so that all who wait for it do not fill the loop's.
_loader = ThreadPoolExecutor(1, "dina-load")


def _loaded(settings: _Settings) -> ComputeScore:
    """In the loader's thread alone."""
    if settings not in _scorers:
        model = _model(settings.path, settings.base, settings.device, settings.dtype)
        _scorers[settings] = scorer(model, settings.asking, settings.score_scale, settings.score_bias)
    return _scorers[settings]


@cache
def _model(path: str, base: str | None, device: str, dtype: str) -> RewardModel:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ConfigError(f"dtype must be a floating type of torch, such as float32 or bfloat16, got {dtype!r}")
    return RewardModel.from_pretrained(path, base=base, device=device, dtype=kind)


Waiting: TypeAlias = tuple[Sample, asyncio.Future[Reward]]


@dataclass(eq=False)
class _Queue:
    """Who waits in one event loop, and the task that answers them while there are any."""

    waiting: list[Waiting] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None

    def next(self) -> list[Waiting]:
        """Samples of one key, the oldest first, that somebody still waits for."""
        batch: list[Waiting] = []
        later: list[Waiting] = []
        for one in self.waiting:
            sample, answer = one
            if answer.done():
                continue
            fits = not batch or (sample.key == batch[0][0].key and len(batch) < MOST_AT_ONCE)
            (batch if fits else later).append(one)
        self.waiting = later
        return batch


class _Together:
    """Samples that are asked for one by one, scored as many together as wait in the same event loop."""

    def __init__(self, model: RewardFunction, asking: Asking) -> None:
        self._model, self._asking = model, asking
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()
        self._opening = threading.Lock()  # loops run in threads of their own
        self._scoring = threading.Lock()  # two batches at once would need the memory of two

    async def ask(self, sample: Sample) -> Reward:
        loop = asyncio.get_running_loop()
        with self._opening:
            queue = self._queues.setdefault(loop, _Queue())
        answer: asyncio.Future[Reward] = loop.create_future()
        queue.waiting.append((sample, answer))
        if queue.worker is None:
            queue.worker = loop.create_task(self._work(queue))
        return await answer

    async def _work(self, queue: _Queue) -> None:
        try:
            await asyncio.sleep(0)  # whoever asks in this turn of the loop comes along
            while batch := queue.next():
                found = await asyncio.to_thread(self._score, [sample for sample, _ in batch])
                for (_, answer), one in zip(batch, found, strict=True):
                    if answer.done():
                        continue
                    if isinstance(one, Reward):
                        answer.set_result(one)
                    else:
                        answer.set_exception(one)
        finally:
            queue.worker = None  # a task holds its loop, and would keep it for ever

    def _score(self, samples: Sequence[Sample]) -> list[Reward | Exception]:
        """Each one's reward or error; what is refused together is asked for one by one, as long as there is an answer."""
        try:
            with self._scoring:
                together = _score(self._model, self._asking, samples)
        except Exception as error:  # whoever awaits the sample is told
            if len(samples) == 1 or isinstance(error, NoAnswerError) or not isinstance(error, DinaError):
                return [error] * len(samples)
            found: list[Reward | Exception] = []
            for sample in samples:
                gone = found[-1] if found and isinstance(found[-1], NoAnswerError) else None
                found.append(gone if gone is not None else self._score([sample])[0])
            return found
        return [_row(together, place) for place in range(len(samples))]


def _score(model: RewardFunction, asking: Asking, samples: Sequence[Sample]) -> Reward:
    """Samples of one key in one call."""
    prompts = [sample.prompt for sample in samples]
    with torch.no_grad():
        if samples[0].latents is None:
            pictures = [sample.picture for sample in samples if sample.picture is not None]
            return asking.score(model, prompts=prompts, images=pictures)
        latents = torch.cat([sample.latents for sample in samples if sample.latents is not None])
        texts = [sample.conditioning for sample in samples if sample.conditioning is not None]
        if not texts:
            return asking.score(model, prompts=prompts, latents=latents)
        return asking.score(model, conditioning=Conditioning.cat(texts), latents=latents)


def _row(reward: Reward, place: int) -> Reward:
    """One sample's part."""
    rows = slice(place, place + 1)
    return Reward(
        reward=reward.reward[rows],
        utility=reward.utility[rows],
        utility_std=reward.utility_std[rows],
        standard_error=reward.standard_error[rows],
        draws=reward.draws[rows],
        sigmas=reward.sigmas,
        seed=reward.seed[place] if isinstance(reward.seed, tuple) else reward.seed,
        spent=reward.spent[rows],
    )
