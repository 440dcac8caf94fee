"""Search while sampling: choose among samples that are not finished, by a judge that reads their states.

All of it stands on a velocity field, so it is the same for a pipeline's network, a policy, or a field under guidance. Samples
of one prompt stand behind each other: `noise [q n c h w]`, one prompt each for `q`. Nothing is learned, and a prompt's samples
are the same alone as among other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.generation.sampler import Field, FlowNoise, StepNoise, clean, ode_step, state_at
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
from dina_lrm.types import Conditioning, NoisedState

__all__ = ["Chunked", "Counted", "Found", "RewardGuidance", "beam", "best_of_n", "prune", "smc"]

Of: TypeAlias = Literal["state", "clean"]

FLOW = FlowNoise()  # it leaves the distribution of the samples as it is; steps of `CpsNoise` narrow it


@dataclass
class Counted:
    """A field that counts what it is asked for. Around the network itself it counts passes, also those of guidance.

    Attributes:
        field: that is asked.
        evaluations: states that it was given.
    """

    field: Field
    evaluations: int = 0

    def __call__(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """The velocity `[b c h w]`."""
        self.evaluations += len(state)
        return self.field(state, conditioning)


@dataclass(frozen=True)
class Chunked:
    """A field that is given so many states at once, and no more.

    Attributes:
        field: that is asked.
        size: most states in one call.
    """

    field: Field
    size: int

    def __call__(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """The velocity `[b c h w]`."""
        parts = [slice(start, start + self.size) for start in range(0, len(state), self.size)]
        return torch.cat([self.field(state[part], conditioning[part]) for part in parts])


@dataclass(frozen=True)
class RewardGuidance:
    """The reward's gradient in the velocity: samples of `p(x) exp(scale r(x))` instead of `p(x)`; see `scoring.guidance`.

    Attributes:
        judge: a reward whose gradient reaches the states.
        scale: how strongly; with `relative` the length of what is added, in lengths of the velocity.
        band: levels at which it guides.
        relative: take of the gradient its direction alone, so that `scale` depends neither on the reward's units nor on sigma.
        of: "state" reads the state as it stands; "clean" the clean latents that the field predicts, with the gradient through
            the field: several times the memory and time.
    """

    judge: Judge
    scale: float
    band: Band = (0.1, 0.8)
    relative: bool = False
    of: Of = "state"

    def __post_init__(self) -> None:
        check_band(self.band)
        _check_of(self.of)

    def __call__(self, field: Field, state: NoisedState, conditioning: Conditioning, prompt: Tensor) -> Tensor:
        """The guided velocity `[b c h w]`, without a graph.

        Args:
            field: that is guided.
            state: all of one level.
            conditioning: of each sample, for the field.
            prompt: number of each sample's prompt, for the judge.

        Raises:
            ConfigError: the reward gives no gradient.
        """
        sigma = float(state.sigma[0])
        if not inside(self.band, sigma):
            return field(state, conditioning)
        with torch.enable_grad():
            latents = state.noised_latents.detach().requires_grad_()
            read = NoisedState(latents, state.sigma)
            velocity = None
            if self.of == "clean":
                velocity = field(read, conditioning)
                read = state_at(clean(read, velocity), 0.0)
            gradient = gradient_of(self.judge(read, prompt), latents)
        velocity = field(state, conditioning) if velocity is None else velocity.detach()
        return velocity - push(gradient, velocity, sigma, self.scale, self.relative)


@dataclass(frozen=True)
class Found:
    """What a search came to; samples of one prompt stand behind each other.

    Attributes:
        latents: clean `[q k c h w]`, the first two axes as one.
        reward: of each as it was last read `[q k]`; NaN for what was never read, or failed.
        ancestry: the noise that each began as, by its place among all noises `[q k]`, int64 on the CPU.
        evaluations: states whose velocity was asked for, counted; under classifier-free guidance one is two passes of the
            network, which a `Counted` around the network itself counts.
        reward_evaluations: states that were judged, counted.
        selections: what was read when, and what was kept.
        log_weights: of SMC's samples among those of their prompt `[q k]`; 0 elsewhere.
    """

    latents: Tensor
    reward: Tensor
    ancestry: Tensor
    evaluations: int
    reward_evaluations: int
    selections: tuple[Selection, ...]
    log_weights: Tensor

    def best(self, num_prompts: int = 1) -> Tensor:
        """Place of each prompt's best sample by its last reward, `[q]`, on the CPU."""
        return keep_best(self.reward, group_size_of(len(self.reward), num_prompts), 1)


def prune(
    velocity: Field,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    judge: Judge,
    cuts: Sequence[Cut],
    *,
    of: Of = "state",
    guidance: RewardGuidance | None = None,
) -> Found:
    """Start many, read their states on the way, go on with the best.

    Args:
        velocity: the field.
        noise: `[q n c h w]`, the samples of one prompt behind each other.
        conditioning: one a prompt, for the field.
        sigmas: the grid `[t + 1]`, falling to 0.
        judge: reads states.
        cuts: when to keep how many of each prompt; of several that one state is the first to reach the fewest stay. None at
            all is plain sampling.
        of: what is read: "state" as it stands; "clean" the clean latents that the step to it predicted, as finished ones are
            read. It takes no pass of the network more.
        guidance: by a reward's gradient besides.

    Raises:
        ShapeError: samples that the prompts cannot share evenly.
        ValueRangeError: a grid that does not fall, or a cut that keeps more than there are.
        WorkError: no sample of a prompt could be judged.
    """
    walk = _Walk(velocity, noise, conditioning, sigmas, judge, guidance)
    check_cuts(cuts, walk.group_size)
    _check_of(of)
    left = list(cuts)
    with torch.no_grad():
        for place in range(walk.steps):
            walk.step(place)
            reached, left = due(left, walk.grid[place + 1])
            if reached:
                walk.read(of)
                walk.go_on(keep_best(walk.reward, walk.group_size, min(cut.keep for cut in reached)))
    return walk.found()


def best_of_n(
    velocity: Field,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    judge: Judge,
    *,
    keep: int = 1,
    guidance: RewardGuidance | None = None,
) -> Found:
    """Finish all, keep the best: pruning at the end only. Arguments as in `prune`.

    Args:
        velocity: the field.
        noise: `[q n c h w]`.
        conditioning: one a prompt.
        sigmas: the grid.
        judge: reads finished pictures, at sigma 0.
        keep: of each prompt.
        guidance: by a reward's gradient besides.
    """
    return prune(velocity, noise, conditioning, sigmas, judge, [Cut(0.0, keep)], guidance=guidance)


def smc(
    velocity: Field,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    judge: Judge,
    *,
    temperature: float,
    seeds: Sequence[int],
    step_noise: StepNoise = FLOW,
    share: float = 0.5,
    band: Band = (0.0, 0.9),
    guidance: RewardGuidance | None = None,
) -> Found:
    """Sequential Monte Carlo towards `p(x) exp(r(x) / temperature)` (Del Moral et al. 2006; for diffusion, Singhal et al. 2025).

    Steps are random, and after each that ends in the band samples are weighed, and resampled where their weights have become
    too unequal (`scoring.selection.Weights`). The finished ones are weighed, not resampled.

    Args:
        velocity: the field.
        noise: `[q n c h w]`.
        conditioning: one a prompt.
        sigmas: the grid.
        judge: reads states, and finished pictures if the band reaches down to 0.
        temperature: in the reward's units.
        seeds: of what is random, one a prompt.
        step_noise: of all steps but the last.
        share: of n, below which is resampled.
        band: levels at which states are read.
        guidance: by a reward's gradient besides.

    Raises:
        ValueRangeError: a temperature, share or band that is none.
        WorkError: no sample of a prompt could be judged.
    """
    check_band(band)
    walk = _Walk(velocity, noise, conditioning, sigmas, judge, guidance, seeds)
    weights = Weights(len(conditioning), walk.group_size, temperature, share, walk.generators)
    with torch.no_grad():
        for place in range(walk.steps):
            walk.step(place, step_noise)
            if inside(band, walk.grid[place + 1]):
                walk.read()
                walk.go_on(weights.ancestors(walk.reward, last=place == walk.steps - 1))
    return walk.found(weights.log_weights)


def beam(
    velocity: Field,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    judge: Judge,
    *,
    branches: int,
    seeds: Sequence[int],
    step_noise: StepNoise = FLOW,
    band: Band = (0.2, 0.9),
    keep: int | None = None,
    guidance: RewardGuidance | None = None,
) -> Found:
    """Beam search over states: from each of B states k next ones, of which the B best of a prompt go on.

    The k share one velocity: the network is asked no more often than for B plain samples.

    Args:
        velocity: the field.
        noise: `[q B c h w]`.
        conditioning: one a prompt.
        sigmas: the grid.
        judge: reads states, and finished pictures if `keep` is given.
        branches: k.
        seeds: of what is random, one a prompt.
        step_noise: of the steps that branch.
        band: levels of the next states at which steps branch; the last step does not.
        keep: of the finished ones of each prompt; None keeps B, unread.
        guidance: by a reward's gradient besides.

    Raises:
        ValueRangeError: fewer than one branch, or more to keep than there are.
        WorkError: no sample of a prompt could be judged.
    """
    if branches < 1:
        raise ValueRangeError(f"a beam needs 1 branch or more, got {branches}")
    check_band(band)
    walk = _Walk(velocity, noise, conditioning, sigmas, judge, guidance, seeds)
    width = walk.group_size
    with torch.no_grad():
        for place in range(walk.steps):
            last = place == walk.steps - 1
            if not last and inside(band, walk.grid[place + 1]):
                walk.step(place, step_noise, branches)
                walk.read()
                walk.go_on(keep_best(walk.reward, walk.group_size, width))
            else:
                walk.step(place)
        if keep is not None:
            walk.read()
            walk.go_on(keep_best(walk.reward, walk.group_size, keep))
    return walk.found()


@dataclass
class _Walk:
    """Samples on their way down a grid: where they are, whence they came, what it has cost."""

    velocity: Field
    latents: Tensor
    conditioning: Conditioning
    sigmas: Tensor
    judge: Judge
    guidance: RewardGuidance | None
    seeds: Sequence[int] | None = None
    selections: list[Selection] = field(default_factory=list)
    reward_evaluations: int = 0

    def __post_init__(self) -> None:
        self.grid: list[float] = self.sigmas.tolist()
        if len(self.grid) < 2 or any(low >= high for high, low in zip(self.grid, self.grid[1:], strict=False)):
            raise ValueRangeError(f"the levels of a search must fall, got {self.grid}")
        self.counted = Counted(self.velocity)
        count, prompts = len(self.latents), len(self.conditioning)
        if self.seeds is not None and len(self.seeds) != prompts:
            raise ShapeError(f"{prompts} prompts need a seed each, got {len(self.seeds)}")
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds or ()]
        self.prompt = torch.arange(prompts).repeat_interleave(group_size_of(count, prompts))
        self.ancestry = torch.arange(count)
        self.reward = torch.full((count,), math.nan, dtype=torch.float64)
        self.predicted = self.latents
        self.sigma = self.grid[0]

    @property
    def steps(self) -> int:
        return len(self.grid) - 1

    @property
    def group_size(self) -> int:
        return len(self.latents) // len(self.conditioning)

    def step(self, place: int, step_noise: StepNoise | None = None, branches: int = 1) -> None:
        """Down to the next level, all as they are or each to several that differ by noise; the last step has no noise."""
        state, following = state_at(self.latents, self.grid[place]), self.grid[place + 1]
        text = self.conditioning[self.prompt.to(self.conditioning.prompt_embeds.device)]
        velocity = self._velocity(state, text)
        self.predicted, self.sigma = clean(state, velocity), following
        if step_noise is None or place == self.steps - 1:
            self.latents = ode_step(state, velocity, following).noised_latents
            return
        towards = step_noise.transition(state, velocity, following, self.grid[1])
        self._pick(torch.arange(len(self.latents)).repeat_interleave(branches))
        mean = towards.mean.repeat_interleave(branches, dim=0)
        self.latents = mean + towards.std * self._fresh(mean) if towards.std else mean

    def read(self, of: Of = "state") -> None:
        """Judge the states as they stand, or what they are on their way to."""
        self.reward_evaluations += len(self.latents)
        state = state_at(self.latents, self.sigma) if of == "state" else state_at(self.predicted, 0.0)
        reward = self.judge(state, self.prompt)
        if reward.shape != (len(self.latents),):
            raise ShapeError(
                f"a judge of {len(self.latents)} states must give as many rewards, got {list(reward.shape)}"
            )
        self.reward = reward.detach().double().cpu()

    def go_on(self, kept: Tensor) -> None:
        """With some of the samples, one of them perhaps several times."""
        self.selections.append(Selection(self.sigma, self.ancestry, self.reward, kept, self.predicted))
        self._pick(kept)

    def found(self, log_weights: Tensor | None = None) -> Found:
        return Found(
            self.latents,
            self.reward,
            self.ancestry,
            self.counted.evaluations,
            self.reward_evaluations,
            tuple(self.selections),
            torch.zeros_like(self.reward) if log_weights is None else log_weights,
        )

    def _velocity(self, state: NoisedState, text: Conditioning) -> Tensor:
        if self.guidance is None or not inside(self.guidance.band, float(state.sigma[0])):
            return self.counted(state, text)
        self.reward_evaluations += len(state)
        return self.guidance(self.counted, state, text, self.prompt)

    def _pick(self, places: Tensor) -> None:
        self.latents, self.predicted = (t[places.to(t.device)] for t in (self.latents, self.predicted))
        self.prompt, self.ancestry, self.reward = self.prompt[places], self.ancestry[places], self.reward[places]

    def _fresh(self, like: Tensor) -> Tensor:
        """Noise, each prompt's from its own generator, so that other prompts have no part in it."""
        each = (len(like) // len(self.generators), *like.shape[1:])
        return torch.cat([torch.randn(each, generator=generator) for generator in self.generators]).to(like)


def _check_of(of: str) -> None:
    if of not in ("state", "clean"):
        raise ConfigError(f'a reward is read of the "state" or of the predicted "clean" latents, got {of!r}')
