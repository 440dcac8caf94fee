"""Held-out samples of a policy, measured: the same prompts and noise each time, so that differences are paired."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms.base import squared_error
from dina_lrm.alignment.assemble import Cast
from dina_lrm.alignment.config import EvaluationConfig
from dina_lrm.alignment.measurement import Measurement
from dina_lrm.alignment.measures import diversity, grid_score, latent_norm
from dina_lrm.alignment.rewards import Finished, LatentTerm, Weighted
from dina_lrm.errors import InputError, WorkError
from dina_lrm.generation import Field, Guided, rollout
from dina_lrm.runtime.accelerator import Accelerator, gather_objects, in_order, shared_out
from dina_lrm.runtime.seeds import derive_seed, derived_generator
from dina_lrm.types import Conditioning

__all__ = ["Evaluation", "Look"]


@dataclass(frozen=True)
class Look:
    """What an evaluation gives.

    Attributes:
        measurement: the numbers.
        pixels: of the first samples of as many prompts, for a grid `[g 3 y x]`.
    """

    measurement: Measurement
    pixels: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Measures a policy.

    Attributes:
        config: how.
        prompts: held out, each once.
        cast: who acts.
        sigmas: the grid of levels to sample at.
        guidance: of sampling.
        shape: of one sample's latents.
        negative: encoded empty prompt.
        wait_for: asks again while the one who is asked is away.
        alike: all processes must ask the networks equally often: what does not come out even is filled up and cut off.
    """

    config: EvaluationConfig
    prompts: tuple[str, ...]
    cast: Cast
    sigmas: Tensor
    guidance: float
    shape: tuple[int, int, int]
    negative: Conditioning
    wait_for: Callable[[Callable[[], Any]], Any]
    alike: bool = False

    @torch.no_grad()
    def measure(self, policy: Field, step: int, accelerator: Accelerator) -> Look:
        """Sample, decode, judge; processes share the work and all get the whole.

        Args:
            policy: velocities of what is measured.
            step: updates behind it.
            accelerator: whose processes share the work.
        """
        count, processes = len(self.prompts), accelerator.num_processes
        at_once = max(1, self.config.batch_size // self.config.samples_per_prompt)
        if self.alike:
            at_once = min(at_once, -(-count // processes))
            count += -count % (at_once * processes)
        starts = range(0, count, at_once)
        own = [
            self._part(policy, step, range(start, min(start + at_once, count)))
            for start in shared_out(accelerator, starts)
        ]
        own = [Look(look.measurement, look.pixels[: self.config.grid]) for look in own]  # no more travels than is shown
        looks = in_order(gather_objects(accelerator, own), len(starts), processes)
        pictures = torch.cat([look.pixels for look in looks])[: len(self.prompts)]
        found = _merged([look.measurement for look in looks], torch.cat)
        if count > len(self.prompts):
            found = _merged([found], lambda tensors: tensors[0][: len(tensors[0]) * len(self.prompts) // count])
        return Look(found, pictures[: self.config.grid])

    def _part(self, policy: Field, step: int, part: range) -> Look:
        config, each = self.config, self.config.samples_per_prompt
        places = [place for place in part for _ in range(each)]
        many = tuple(self.prompts[place % len(self.prompts)] for place in places)
        text = self.cast.prompt_lookup(many)
        noise = torch.cat([self._noise(place) for place in part])
        way = rollout(
            Guided(policy, self.negative, self.guidance), noise.to(self.cast.policy.device), text, self.sigmas
        )
        seeds = tuple(derive_seed(config.seed, "reward", place) for place in places)
        samples = Finished(way.latents, many, self.cast.policy.backbone.decode_latents, seeds, each)
        rewards, spreads, profiles = self._latent_terms(samples)
        rewards |= self._judged(samples, [w for w in self.cast.mixture.terms if w.name not in rewards])
        middle = way.state(len(self.sigmas) // 2)
        with self.cast.policy.reference():
            before = policy(middle, text)
        found = Measurement(
            step=step,
            group_size=each,
            rewards=rewards,
            judges=self._judged(samples, self.cast.judges),
            spreads=spreads,
            profiles=profiles,
            sigmas=config.sigmas,
            grid=grid_score(samples.pixels.float(), self.cast.policy.backbone.image_multiple),
            norm=latent_norm(samples.latents),
            diversity=diversity(samples.latents, each),
            distance=squared_error(policy(middle, text), before),
        )
        return Look(_on_cpu(found), samples.pixels[::each].cpu())

    def _noise(self, place: int) -> Tensor:
        generator = derived_generator(self.config.seed, "evaluation", place)
        return torch.randn(self.config.samples_per_prompt, *self.shape, generator=generator)

    def _judged(self, samples: Finished, terms: Sequence[Weighted]) -> dict[str, Tensor]:
        """Rewards `[b]`, NaN where there is none; a judge that fails costs its numbers, not the run."""
        found = {}
        for weighted in terms:
            try:
                judged = self.wait_for(partial(weighted.term, samples))
                found[weighted.name] = torch.where(judged.valid, judged.reward.float(), torch.nan)
            except (InputError, WorkError):
                raise
            except Exception as error:
                warnings.warn(f"{weighted.name} could not judge the held-out samples: {error!r}", stacklevel=2)
                found[weighted.name] = torch.full((len(samples),), torch.nan)
        return found

    def _latent_terms(self, samples: Finished) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Rewards, their spread over draws, and their profile over levels, of those that read latents."""
        rewards, spreads, profiles = {}, {}, {}
        for weighted in self.cast.mixture.terms:
            if not isinstance(weighted.term, LatentTerm):
                continue
            term = weighted.term
            answer = self.wait_for(partial(term.scored, samples, term.sigmas, draws=self.config.draws))
            rewards[weighted.name], spreads[weighted.name] = answer.reward, answer.utility_std
            levels = [
                self.wait_for(partial(term.scored, samples, (sigma,), draws=self.config.draws)).reward
                for sigma in self.config.sigmas
            ]
            profiles[weighted.name] = torch.stack(levels, dim=1) if levels else torch.zeros(len(samples), 0)
        return rewards, spreads, profiles


def _on_cpu(found: Measurement) -> Measurement:
    return _merged([found], lambda tensors: tensors[0].cpu())


def _merged(parts: Sequence[Measurement], merge: Callable[[list[Tensor]], Tensor]) -> Measurement:
    """One record of several, field by field."""

    def each(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return merge(list(values))
        if isinstance(values[0], Mapping):
            return {name: merge([value[name] for value in values]) for name in values[0]}
        return values[0]

    return Measurement(**{f.name: each([getattr(part, f.name) for part in parts]) for f in fields(Measurement)})
