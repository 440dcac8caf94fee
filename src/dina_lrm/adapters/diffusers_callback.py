"""diffusers: a `callback_on_step_end` that scores the noisy state inside a sampler, as it stands.

    hook = StepScores(model, conditioning=model.encode_prompts(["a red fox"]))
    pipeline("a red fox", callback_on_step_end=hook)
    hook.records                                    # step, sigma and reward of every step

Nothing is decoded and nothing is guessed of the clean picture: a latent reward model reads the state that the sampler's own
network reads next. The reward model must be made for the sampler's family of latents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dina_lrm.adapters.sampler_levels import num_steps_of, state_after, unpacked_latents
from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.types import Conditioning, NoisedState, Reward

POOLED = ("pooled_prompt_embeds", "add_text_embeds")  # SD3's name, SDXL's


@dataclass(frozen=True)
class StepScore:
    """What was found after a step.

    Attributes:
        step: number of the step, from 0.
        sigma: noise level of the state after it.
        reward: of each sample.
    """

    step: int
    sigma: float
    reward: Reward


class StepScores:
    """A callback that scores the state after chosen steps, and keeps what it found.

    With `conditioning` the pipeline needs no other setting. Without, it reads the sampler's own text states, whose length is
    the pipeline's (T5 256 in SD3, where the published models were trained with 128): pass
    `callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline)` then. Of embeds that hold the negative prompt first, as
    classifier-free guidance has them, the second half is read.

    Args:
        model: local or behind HTTP.
        conditioning: the encoded prompts, one for all samples or one a prompt.
        steps: after which steps; None for all, unless `sigmas` is given.
        sigmas: also after the first step that comes down to each of these levels.
        height: of the pictures in pixels; needed where the pipeline packs its latents (FLUX, Qwen-Image).
        width: the same.
        on_score: called with the pipeline and each finding; it may set `pipeline._interrupt = True` to stop.
    """

    def __init__(
        self,
        model: RewardFunction,
        *,
        conditioning: Conditioning | None = None,
        steps: Collection[int] | None = None,
        sigmas: Sequence[float] = (),
        height: int | None = None,
        width: int | None = None,
        on_score: Callable[[Any, StepScore], None] | None = None,
    ) -> None:
        if not all(0 <= sigma <= 1 for sigma in sigmas):
            raise ValueRangeError(f"sigmas must be levels in [0, 1], got {tuple(sigmas)}")
        self.model, self.conditioning, self.on_score = model, conditioning, on_score
        self.steps, self.sigmas = steps, tuple(sorted(sigmas, reverse=True))
        self.height, self.width = height, width
        self.records: list[StepScore] = []
        self._open = self.sigmas

    def tensor_inputs(self, pipeline: Any) -> list[str]:
        """For `callback_on_step_end_tensor_inputs`: what is read of the tensors that the pipeline hands to callbacks."""
        wanted = ("latents",) if self.conditioning is not None else ("latents", "prompt_embeds", *POOLED)
        return [name for name in pipeline._callback_tensor_inputs if name in wanted]

    def __call__(self, pipeline: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Score the state after a step, if it is one of those asked for; the sampler's tensors stay as they are.

        Args:
            pipeline: whose sampler runs.
            step: its number, from 0.
            timestep: that the network was told.
            callback_kwargs: the sampler's tensors by name.

        Returns:
            `callback_kwargs`.
        """
        if step == 0:
            self._open = self.sigmas  # a new run of the sampler
        latents = unpacked_latents(pipeline, callback_kwargs["latents"], self.height, self.width)
        state = state_after(pipeline.scheduler, step, num_steps_of(pipeline), timestep, latents)
        if self._asked(step, float(state.sigma[0])):
            with torch.no_grad():
                reward = self.model.score_state(state, self._text(pipeline, state, callback_kwargs))
            found = StepScore(step, float(state.sigma[0]), reward)
            self.records.append(found)
            if self.on_score is not None:
                self.on_score(pipeline, found)
        return callback_kwargs

    def _asked(self, step: int, sigma: float) -> bool:
        passed = [level for level in self._open if level >= sigma]
        self._open = self._open[len(passed) :]
        if self.steps is None:
            return bool(passed) or not self.sigmas
        return bool(passed) or step in self.steps

    def _text(self, pipeline: Any, state: NoisedState, tensors: Mapping[str, Any]) -> Conditioning:
        given = self.conditioning if self.conditioning is not None else _samplers_text(pipeline, state, tensors)
        if len(given) == len(state):
            return given
        if len(state) % len(given):
            raise ShapeError(f"{len(state)} samples of the sampler cannot share {len(given)} prompts evenly")
        # The pipelines put the pictures of one prompt behind each other.
        each = len(state) // len(given)
        return given.map(lambda tensor: tensor.repeat_interleave(each, dim=0))


def _samplers_text(pipeline: Any, state: NoisedState, tensors: Mapping[str, Any]) -> Conditioning:
    """The text states that the sampler's own network reads, without the negative prompt's.

    Raises:
        ConfigError: the pipeline does not hand over all that a reward model reads.
    """
    offered = pipeline._callback_tensor_inputs
    embeds = tensors.get("prompt_embeds")
    pooled_name = next((name for name in POOLED if name in offered), None)
    # Those that hand over negative embeds have no pooled ones; FLUX, Z-Image and Qwen-Image keep something back.
    if pooled_name is None and "negative_prompt_embeds" not in offered:
        raise ConfigError(
            f"{type(pipeline).__name__} hands callbacks no pooled text state and no mask: give conditioning, such as "
            "model.encode_prompts([prompt])"
        )
    if embeds is None or (pooled_name is not None and tensors.get(pooled_name) is None):
        raise ConfigError(
            "the callback was not given the text states: give conditioning to the hook, or "
            "callback_on_step_end_tensor_inputs=hook.tensor_inputs(pipeline) to the pipeline"
        )
    pooled = None if pooled_name is None else tensors[pooled_name]
    if len(embeds) == 2 * len(state):
        embeds, pooled = embeds[len(state) :], None if pooled is None else pooled[len(state) :]
    return Conditioning(embeds, pooled)
