"""diffusers: search inside a pipeline's own sampler, as a `callback_on_step_end`; the pipeline's code runs as it is.

    hook = Prune(judge_of(model, model.encode_prompts(["a red fox"])), [Cut(0.7, 8), Cut(0.4, 4)])
    images = pipeline(
        "a red fox",
        num_images_per_prompt=16,
        callback_on_step_end=hook,
        callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline),
    ).images                                            # four of them; hook.ancestry says which of the sixteen

The functions of `dina_lrm.generation.search` do the same on a velocity field, by the same judges. The reward model must be made
for the sampler's family of latents.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dina_lrm.adapters.sampler_levels import num_steps_of, state_after, unpacked_latents
from dina_lrm.backbones.sharing import unwrapped
from dina_lrm.errors import ConfigError
from dina_lrm.scoring.guidance import gradient_of, push
from dina_lrm.scoring.selection import (
    Band,
    Cut,
    Judge,
    Selection,
    Weights,
    check_band,
    check_cuts,
    due,
    group_size_of,
    inside,
    keep_best,
)
from dina_lrm.types import NoisedState

# What pipelines hold of each sample and hand to callbacks.
HANDED = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "add_text_embeds",
    "add_time_ids",
)
HAND_ALL = ("SD3Transformer2DModel", "UNet2DConditionModel", "WanTransformer3DModel", "ZImageTransformer2DModel")
# What they keep to themselves, as their networks are given it.
WITHHELD = {
    "FluxTransformer2DModel": ("encoder_hidden_states", "pooled_projections", "guidance"),
    "QwenImageTransformer2DModel": (
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "img_shapes",
        "guidance",
    ),
}


@dataclass(frozen=True)
class _Standing:
    """Where a sampler is after a step: what `callback_on_step_end` is told, and the level of its latents."""

    pipeline: Any
    step: int
    timestep: Any
    latents: Tensor
    sigma: float
    last: bool


class _Search(ABC):
    """What the callbacks share: a judge, and the samples' ways through one run of the sampler.

    Attributes:
        ancestry: the noise that each sample began as, by its place in the batch `[b]`.
        reward: of each as it was last read `[b]`; NaN for what was never read, or failed.
        selections: what was read when, and who went on.
        evaluations: states whose velocity the pipeline has asked for, counted; guided ones once.
        reward_evaluations: states that were judged.
    """

    def __init__(self, judge: Judge, num_prompts: int, height: int | None, width: int | None) -> None:
        self.judge, self.num_prompts, self.height, self.width = judge, num_prompts, height, width
        self._start(None, num_prompts)

    def tensor_inputs(self, pipeline: Any) -> list[str]:
        """For `callback_on_step_end_tensor_inputs`: the tensors that are read or changed."""
        return ["latents"]

    def __call__(self, pipeline: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Look at the samples after a step, and change them.

        Args:
            pipeline: whose sampler runs.
            step: its number, from 0.
            timestep: that the network was told.
            callback_kwargs: the sampler's tensors by name.

        Returns:
            Those that the sampler goes on with.
        """
        latents = callback_kwargs["latents"]
        if step == 0:
            self._start(pipeline, len(latents))
        if len(latents) != len(self.ancestry):
            raise ConfigError(
                f"after a choice of {len(self.ancestry)} samples {type(pipeline).__name__} went on with {len(latents)}: its "
                "network may be compiled or wrapped so that what it is given cannot be changed; prune on the plain network"
            )
        self.evaluations += len(latents)
        last = step == num_steps_of(pipeline) - 1
        clean = unpacked_latents(pipeline, latents, self.height, self.width)
        state = state_after(pipeline.scheduler, step, num_steps_of(pipeline), timestep, clean)
        # What schedules of betas leave after the last step is nobody's state: the picture is finished.
        sigma = 0.0 if last else float(state.sigma[0])
        with torch.no_grad():
            return self._act(_Standing(pipeline, step, timestep, latents, sigma, last), callback_kwargs)

    @abstractmethod
    def _act(self, at: _Standing, tensors: dict[str, Any]) -> dict[str, Any]:
        """What is done after a step."""

    def _start(self, pipeline: Any, count: int) -> None:
        """A new run of a sampler."""
        self.group_size = group_size_of(count, self.num_prompts)
        self.ancestry = torch.arange(count)
        self.reward = torch.full((count,), math.nan, dtype=torch.float64)
        self.selections: list[Selection] = []
        self.evaluations = self.reward_evaluations = 0

    def _read(self, at: _Standing, latents: Tensor) -> Tensor:
        """Rewards `[b]` of the samples, differentiable in latents that ask for it."""
        clean = unpacked_latents(at.pipeline, latents, self.height, self.width)
        if at.last:
            state = NoisedState(clean, torch.zeros(len(clean), device=clean.device))
        else:
            state = state_after(at.pipeline.scheduler, at.step, num_steps_of(at.pipeline), at.timestep, clean)
        self.reward_evaluations += len(clean)
        return self.judge(state, self.ancestry // self.group_size)

    def _go_on(self, at: _Standing, kept: Tensor) -> None:
        """With some of the samples, whom the scheduler is told of."""
        self.selections.append(Selection(at.sigma, self.ancestry, self.reward, kept))
        self.ancestry, self.reward = self.ancestry[kept], self.reward[kept]
        remember(at.pipeline.scheduler, at.latents.shape, kept)


class Prune(_Search):
    """Drops samples on the way: the pipeline goes on with the best of each prompt, and returns them.

    SD3, SDXL, SD 1.5, Wan and unguided Z-Image hand to callbacks all that they hold of each sample; give them
    `callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline)`. FLUX and Qwen-Image keep some to themselves: until the run
    ends, a hook on their network leaves out the rows of samples that are gone.
    """

    def __init__(
        self,
        judge: Judge,
        cuts: Sequence[Cut],
        *,
        num_prompts: int = 1,
        of: Literal["state", "clean"] = "state",
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Args:
        judge: reads states, such as `judge_of` makes it of a reward model.
        cuts: when to keep how many of each prompt; of several that one state is the first to reach the fewest stay.
        num_prompts: of the pipeline's call; they share the samples evenly.
        of: what is read: "state" as it stands; "clean" the clean latents that the step to it predicted, after the second step or
            later of an Euler sampler of flow matching.
        height: of the pictures in pixels; needed where the pipeline packs its latents (FLUX, Qwen-Image).
        width: the same.
        """
        self.cuts, self.of = tuple(cuts), of
        self._narrowing: _Narrowing | None = None
        super().__init__(judge, num_prompts, height, width)

    def tensor_inputs(self, pipeline: Any) -> list[str]:
        if _network_name(pipeline) in WITHHELD:
            return ["latents"]
        return [name for name in pipeline._callback_tensor_inputs if name == "latents" or name in HANDED]

    def _start(self, pipeline: Any, count: int) -> None:
        super()._start(pipeline, count)
        self._left = list(self.cuts)
        self._before: tuple[Tensor, float] | None = None
        self._release()
        if pipeline is None:
            return
        check_cuts(self.cuts, self.group_size)
        _check_can_shrink(pipeline)
        if self.of == "clean":
            _require_euler(pipeline, "what a state is on its way to", 'give of="state"')

    def _act(self, at: _Standing, tensors: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in self.tensor_inputs(at.pipeline) if name not in tensors]
        if missing:
            raise ConfigError(
                f"the callback was not given {', '.join(missing)}, whose rows are to be dropped: give "
                "callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline) to the pipeline"
            )
        reached, self._left = (self._left, []) if at.last else due(self._left, at.sigma)
        if reached:
            self.reward = self._looked_at(at).double().cpu()
            size = len(self.reward) // self.num_prompts
            kept = keep_best(self.reward, size, min(cut.keep for cut in reached))
            before = len(at.latents)
            self._go_on(at, kept)
            names = [name for name in tensors if name == "latents" or name in HANDED]
            tensors = {**tensors, **{name: _rows(name, tensors[name], kept, before) for name in names}}
            self._narrow(at)
        self._before = (tensors["latents"], at.sigma)
        if at.last:
            self._release()
        return tensors

    def _looked_at(self, at: _Standing) -> Tensor:
        if self.of == "state":
            return self._read(at, at.latents)
        if self._before is None:
            raise ConfigError(
                "after the first step nobody can say what a state is on its way to; make the first cut later"
            )
        before, sigma = self._before
        velocity = (at.latents.float() - before.float()) / (at.sigma - sigma)
        return self._read(replace(at, last=True), at.latents.float() - at.sigma * velocity)

    def _narrow(self, at: _Standing) -> None:
        names = WITHHELD.get(_network_name(at.pipeline))
        if names is None:
            return
        if self._narrowing is None:
            self._narrowing = _Narrowing(_network(at.pipeline), names, self.group_size * self.num_prompts)
        self._narrowing.kept = self.ancestry

    def _release(self) -> None:
        if self._narrowing is not None:
            self._narrowing.handle.remove()
            self._narrowing = None


class Resample(_Search):
    """Sequential Monte Carlo inside the sampler: bad samples are replaced by copies of good ones; their number stays.

    Copies come apart only if steps are random. `noise` makes the steps of an Euler sampler of flow matching so, all but the
    first and the last, without changing where samples are distributed (the SDE of Flow-GRPO, Liu et al. 2025, equation 9).
    """

    def __init__(
        self,
        judge: Judge,
        *,
        temperature: float,
        seeds: Sequence[int],
        share: float = 0.5,
        band: Band = (0.0, 0.9),
        noise: float | None = 0.7,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Args:
        judge: reads states, such as `judge_of` makes it of a reward model.
        temperature: in the reward's units: weights grow by `exp((r - r_before) / temperature)`.
        seeds: of what is random, one a prompt of the pipeline's call; they share the samples evenly.
        share: a prompt's samples are resampled when their effective size falls under this share of their number.
        band: levels at which states are read.
        noise: how random steps are; None leaves them as they are.
        height: of the pictures in pixels; needed where the pipeline packs its latents (FLUX, Qwen-Image).
        width: the same.
        """
        check_band(band)
        self.temperature, self.seeds, self.share, self.band, self.noise = temperature, tuple(seeds), share, band, noise
        super().__init__(judge, len(self.seeds), height, width)

    def _start(self, pipeline: Any, count: int) -> None:
        super()._start(pipeline, count)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.weights = Weights(self.num_prompts, self.group_size, self.temperature, self.share, self._generators)
        self._before: tuple[Tensor, float] | None = None
        if pipeline is not None and self.noise is not None:
            _require_euler(pipeline, "noise in the steps", "give noise=None")

    def _act(self, at: _Standing, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = at.latents
        if self.noise is not None and self._before is not None and not at.last:
            latents = self._noised(*self._before, latents, at.sigma, self.noise)
        if inside(self.band, at.sigma):
            self.reward = self._read(at, latents).double().cpu()
            kept = self.weights.ancestors(self.reward, at.last)
            self._go_on(at, kept)
            latents = latents[kept.to(latents.device)]
        self._before = (latents, at.sigma)
        return {**tensors, "latents": latents}

    def _noised(self, before: Tensor, sigma: float, after: Tensor, following: float, level: float) -> Tensor:
        """The step as it would have been with noise in it."""
        step = following - sigma
        velocity = (after.float() - before.float()) / step
        spread = level * math.sqrt(sigma / (1 - sigma))
        mean = before.float() * (1 + spread**2 / (2 * sigma) * step)
        mean = mean + velocity * (1 + spread**2 * (1 - sigma) / (2 * sigma)) * step
        each = (self.group_size, *after.shape[1:])
        fresh = torch.cat([torch.randn(each, generator=generator) for generator in self._generators]).to(mean)
        return (mean + spread * math.sqrt(-step) * fresh).to(after.dtype)


class GuideByReward(_Search):
    """The reward's gradient in the sampler's velocity, as `dina_lrm.generation.RewardGuidance` has it, of the state as it stands.

    The gradient at a state is taken after the step that led there, and what it adds to the next step is added after that.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        scale: float,
        band: Band = (0.1, 0.8),
        relative: bool = False,
        num_prompts: int = 1,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Args:
        judge: of a reward model in this process.
        scale: of the reward; with `relative` the length of what is added, in lengths of the velocity.
        band: levels at which it guides.
        relative: take of the gradient its direction alone.
        num_prompts: of the pipeline's call; they share the samples evenly.
        height: of the pictures in pixels; needed where the pipeline packs its latents (FLUX, Qwen-Image).
        width: the same.
        """
        check_band(band)
        self.scale, self.band, self.relative = scale, band, relative
        super().__init__(judge, num_prompts, height, width)

    def _start(self, pipeline: Any, count: int) -> None:
        super()._start(pipeline, count)
        self._pending: tuple[Tensor, Tensor, float] | None = None
        if pipeline is not None:
            _require_euler(pipeline, "guidance", "give the pipeline such a scheduler")

    def _act(self, at: _Standing, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = at.latents
        if self._pending is not None:
            before, gradient, sigma = self._pending
            step = at.sigma - sigma
            velocity = (latents.float() - before.float()) / step
            pushed = latents.float() - step * push(gradient, velocity, sigma, self.scale, self.relative)
            latents, self._pending = pushed.to(latents.dtype), None
        if not at.last and inside(self.band, at.sigma):
            with torch.enable_grad():
                asking = latents.detach().float().requires_grad_()
                reward = self._read(at, asking)
                self._pending = (latents, gradient_of(reward, asking), at.sigma)
            self.reward = reward.detach().double().cpu()
        return {**tensors, "latents": latents}


class _Narrowing:
    """A hook on a network that leaves out of its arguments the rows of samples that are gone.

    It acts only where a call has the latents of those that stayed and arguments of all, so a run that was cut short leaves
    nothing behind that another would notice.
    """

    def __init__(self, network: Any, names: Sequence[str], count: int) -> None:
        self.names, self.count = names, count
        self.kept = torch.arange(count)
        self.handle = network.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if len(kwargs["hidden_states"]) != len(self.kept):
            return None
        given = {name: kwargs[name] for name in self.names if kwargs.get(name) is not None}
        stale = {
            name: _rows(name, value, self.kept, self.count) for name, value in given.items() if len(value) == self.count
        }
        return args, {**kwargs, **stale}


def remember(scheduler: Any, shape: torch.Size, kept: Tensor) -> None:
    """Let what a scheduler keeps of earlier steps (multistep and second-order ones) follow the samples.

    Args:
        scheduler: of the pipeline.
        shape: of the latents before.
        kept: places of those that go on.
    """

    def follow(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == shape:
            return value[kept.to(value.device)]
        return [follow(one) for one in value] if isinstance(value, list) else value

    for name, value in list(vars(scheduler).items()):
        if isinstance(value, Tensor | list):
            setattr(scheduler, name, follow(value))


def _rows(name: str, value: Any, kept: Tensor, count: int) -> Any:
    """The rows of the samples that stay; of embeds that hold the negative prompt's first, those of both halves."""
    if value is None or len(value) == 1 < count:  # one row that is broadcast to all
        return value
    if len(value) not in (count, 2 * count):
        raise ConfigError(
            f"{name} holds {len(value)} rows where the sampler has {count} samples; they cannot be dropped"
        )
    rows = torch.cat([kept + half * count for half in range(len(value) // count)])
    return value[rows.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]


def _network(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)


def _network_name(pipeline: Any) -> str:
    return type(unwrapped(_network(pipeline))).__name__


def _check_can_shrink(pipeline: Any) -> None:
    name = _network_name(pipeline)
    if name not in (*HAND_ALL, *WITHHELD):
        raise ConfigError(
            f"it is not known what {type(pipeline).__name__} holds of each sample, so none can be dropped; use Resample, or "
            "dina_lrm.generation.prune"
        )
    if name == "ZImageTransformer2DModel" and pipeline.do_classifier_free_guidance:
        raise ConfigError(
            f"{type(pipeline).__name__} under guidance counts its samples before it begins, so none can be dropped; use "
            "guidance_scale=0, Resample, or dina_lrm.generation.prune"
        )


def _require_euler(pipeline: Any, what: str, otherwise: str) -> None:
    """Refuse schedulers whose step is not along the velocity."""
    scheduler = pipeline.scheduler
    euler = any(kind.__name__.startswith("FlowMatchEuler") for kind in type(scheduler).__mro__)
    if not euler or scheduler.config.get("stochastic_sampling", False):
        raise ConfigError(
            f"{what} needs the plain Euler steps of flow matching (FlowMatchEulerDiscreteScheduler), the pipeline has a "
            f"{type(scheduler).__name__}; {otherwise}"
        )
