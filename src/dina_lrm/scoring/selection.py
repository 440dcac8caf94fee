"""Which of several samples to go on with: a judge reads their states, and the best of each prompt stay.

Nothing here samples: a search over a velocity field and a callback inside a pipeline choose by the same rules. Samples of one
prompt stand behind each other, as many a prompt. A sample without a reward is never chosen while another of its prompt has
one, and a prompt none of whose samples has one is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dina_lrm.errors import DinaError, NoAnswerError, ShapeError, ValueRangeError, WorkError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.types import Conditioning, NoisedState

__all__ = [
    "Band",
    "Cut",
    "Judge",
    "Selection",
    "Weights",
    "check_band",
    "check_cuts",
    "due",
    "effective_size",
    "group_size_of",
    "halving_schedule",
    "inside",
    "judge_of",
    "keep_best",
    "random_judge",
    "systematic",
]

Judge: TypeAlias = Callable[[NoisedState, Tensor], Tensor]
"""States of one level and the number of each one's prompt, int64 `[b]` on the CPU, to rewards `[b]`; NaN where it failed."""

Band: TypeAlias = tuple[float, float]

SAME_LEVEL = 1e-6  # float32 rounds the levels of a grid


@dataclass(frozen=True)
class Cut:
    """A choice to be made on the way.

    Attributes:
        sigma: it is made at the first state at or below this level; 0 is the finished picture.
        keep: samples of each prompt that go on.
    """

    sigma: float
    keep: int

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < 1:
            raise ValueRangeError(f"a cut's sigma must lie in [0, 1), got {self.sigma:g}: at 1 there is only noise")
        if self.keep < 1:
            raise ValueRangeError(f"a cut must keep 1 sample of each prompt or more, got {self.keep}")


@dataclass(frozen=True)
class Selection:
    """A choice that was made.

    Attributes:
        sigma: level of the states that were read.
        candidates: the noise that each began as, by its place among all noises `[b]`.
        reward: of each `[b]`; NaN where it failed.
        kept: places among the candidates of those that went on; one may stand there several times.
        predicted: the clean latents that each was on its way to `[b c h w]`; None where nobody knows.
    """

    sigma: float
    candidates: Tensor
    reward: Tensor
    kept: Tensor
    predicted: Tensor | None = None


def judge_of(
    reward: RewardFunction,
    conditioning: Conditioning,
    *,
    sigmas: Sequence[float] = (0.4,),
    draws: int | Adaptive = 1,
    seed: int = 0,
) -> Judge:
    """A reward function as a judge: it reads states as they stand, and finished pictures (sigma 0) as `score` does.

    Where a batch is refused each of its samples is asked for by itself, and those that fail get NaN.

    Args:
        reward: local or behind HTTP.
        conditioning: the prompts, encoded for the reward, one a prompt or one for all: its text may be of another length than
            the generator's.
        sigmas: levels that finished pictures are noised to.
        draws: noises a level, for finished pictures.
        seed: of that noise.
    """

    def ask(state: NoisedState, rows: Tensor) -> Tensor:
        text = conditioning if len(conditioning) == 1 else conditioning[rows.to(conditioning.prompt_embeds.device)]
        if bool(state.sigma.any()):
            return reward.score_state(state, text).reward
        return reward.score(
            latents=state.noised_latents, conditioning=text, sigmas=sigmas, draws=draws, seed=seed
        ).reward

    def judge(state: NoisedState, prompt: Tensor) -> Tensor:
        try:
            return ask(state, prompt)
        except NoAnswerError:
            raise
        except DinaError:
            if len(state) == 1:
                raise
            found = [_asked_alone(ask, state, prompt, place) for place in range(len(state))]
            if all(bool(one.isnan().any()) for one in found):
                raise
        return torch.cat(found)

    return judge


def _asked_alone(ask: Judge, state: NoisedState, prompt: Tensor, place: int) -> Tensor:
    try:
        return ask(state[place : place + 1], prompt[place : place + 1])
    except NoAnswerError:
        raise
    except DinaError:
        return torch.full((1,), math.nan, device=state.sigma.device)


def random_judge(generator: torch.Generator) -> Judge:
    """A judge that looks at nothing: the control beside every choice.

    Args:
        generator: on the CPU.
    """

    def judge(state: NoisedState, prompt: Tensor) -> Tensor:
        return torch.rand(len(state), generator=generator)

    return judge


def group_size_of(num_samples: int, num_prompts: int) -> int:
    """Samples of each prompt.

    Raises:
        ShapeError: the prompts cannot share them evenly.
    """
    if num_prompts < 1 or num_samples % num_prompts or not num_samples:
        raise ShapeError(f"{num_samples} samples cannot be shared evenly by {num_prompts} prompts")
    return num_samples // num_prompts


def check_cuts(cuts: Sequence[Cut], group_size: int) -> None:
    """Refuse cuts that keep more than there are.

    Raises:
        ValueRangeError: naming the first on the way.
    """
    for cut in sorted(cuts, key=lambda cut: -cut.sigma):
        if cut.keep > group_size:
            raise ValueRangeError(
                f"a cut at sigma {cut.sigma:g} cannot keep {cut.keep} of the {group_size} samples of each prompt that are left"
            )
        group_size = cut.keep


def due(cuts: Sequence[Cut], sigma: float) -> tuple[list[Cut], list[Cut]]:
    """The cuts that a state of this level is the first to reach, and those that are still to come."""
    reached = [cut for cut in cuts if cut.sigma >= sigma - SAME_LEVEL]
    return reached, [cut for cut in cuts if cut.sigma < sigma - SAME_LEVEL]


def keep_best(reward: Tensor, group_size: int, keep: int) -> Tensor:
    """Places of the best of each prompt, in the order in which they stood: `[q keep]`, int64 on the CPU.

    Args:
        reward: `[q n]` flattened; what is not finite is no reward.
        group_size: n.
        keep: of each prompt; the first of equals go before.

    Raises:
        ShapeError: rewards of other counts than said.
        ValueRangeError: more to keep than there are.
        WorkError: no sample of a prompt has a reward.
    """
    values = _grouped(reward, group_size)
    if not 1 <= keep <= group_size:
        raise ValueRangeError(f"of {group_size} samples of each prompt 1 to {group_size} can be kept, not {keep}")
    failed = ~values.isfinite()
    _refuse_failed(failed.all(dim=1))
    order = values.masked_fill(failed, -math.inf).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(len(values)).unsqueeze(1) * group_size
    return (order[:, :keep].sort(dim=1).values + first).flatten()


def effective_size(log_weights: Tensor) -> float:
    """How many samples of equal weight the weighted ones are worth: `1 / sum(w^2)`; 0 where none has a weight."""
    if bool((log_weights == -math.inf).all()):
        return 0.0
    return float(1 / log_weights.double().softmax(dim=0).square().sum())


def systematic(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Ancestors of as many new samples, by systematic resampling (Kitagawa 1996): each `i` comes `floor` or `ceil` of `n w_i` times.

    Args:
        log_weights: of one prompt's samples `[n]`; -inf for those that may not go on.
        generator: on the CPU; one uniform number is drawn.

    Returns:
        Places `[n]`, rising, int64 on the CPU.

    Raises:
        WorkError: no sample has a weight.
    """
    values = log_weights.detach().double().cpu()
    if bool((values == -math.inf).all()):
        raise WorkError(f"none of {len(values)} samples has a weight: there is nothing to resample from")
    ends = values.softmax(dim=0).cumsum(dim=0)
    points = (torch.arange(len(values)) + torch.rand((), generator=generator, dtype=torch.float64)) / len(values)
    # Whoever has no weight ends where the one before did, and no point lies between.
    return torch.searchsorted(ends / ends[-1], points, right=True)


class Weights:
    """What the samples of SMC towards `p(x) exp(r(x) / temperature)` weigh among those of their prompt.

    At each reading a weight is multiplied by `exp((r - r_before) / temperature)`, where `r_before` is the sample's reward when it
    was last read, 0 at first. A sample that failed weighs nothing.

    Attributes:
        log_weights: `[q n]` flattened; 0 is the weight of all at first and after they were resampled.
    """

    def __init__(
        self, num_prompts: int, group_size: int, temperature: float, share: float, generators: Sequence[torch.Generator]
    ) -> None:
        """All are equal.

        Args:
            num_prompts: q.
            group_size: n.
            temperature: in the reward's units.
            share: a prompt's samples are resampled when their effective size falls under this share of n.
            generators: on the CPU, one a prompt.

        Raises:
            ValueRangeError: a temperature or share that is none.
        """
        if not (temperature > 0 and 0 <= share <= 1):
            raise ValueRangeError(
                f"SMC needs a temperature above 0 and a share in [0, 1], got temperature={temperature:g} and share={share:g}"
            )
        self._group_size, self._temperature, self._share, self._generators = group_size, temperature, share, generators
        self.log_weights = torch.zeros(num_prompts * group_size, dtype=torch.float64)
        self._before = self.log_weights.clone()

    def ancestors(self, reward: Tensor, last: bool) -> Tensor:
        """Weigh samples by a reading, and say who goes on.

        Args:
            reward: of each `[q n]` flattened, on the CPU.
            last: they are finished and need no resampling.

        Returns:
            Places `[q n]`, those of a prompt among its own; the weights are in their order.

        Raises:
            WorkError: no sample of a prompt has a weight.
        """
        weights = self.log_weights + (reward - self._before) / self._temperature
        weights[~reward.isfinite()] = -math.inf
        table = weights.view(-1, self._group_size)
        _refuse_failed((table == -math.inf).all(dim=1))
        kept = torch.arange(len(weights)).view_as(table)
        for number, (row, generator) in enumerate(zip(table, self._generators, strict=True)):
            if effective_size(row) < self._share * len(row) and not last:
                kept[number] = kept[number, systematic(row, generator)]
                row.zero_()
        self.log_weights, self._before = weights, reward.nan_to_num()[kept.flatten()]
        return kept.flatten()


def halving_schedule(sigmas: Tensor, start: int, finish: int, first: float = 0.8) -> tuple[Cut, ...]:
    """Successive halving (Jamieson and Talwalkar 2016): half of the samples go at each of evenly spaced steps.

    Args:
        sigmas: the sampler's grid `[t + 1]`.
        start: samples of each prompt at the beginning.
        finish: that are left.
        first: half go at the first step at or below this level, half of the rest later, the last when all is finished.

    Raises:
        ValueRangeError: nothing to halve, or a grid with fewer steps than halvings.
    """
    if not 1 <= finish < start:
        raise ValueRangeError(f"halving goes from more samples to fewer, got start={start} and finish={finish}")
    rounds = math.ceil(math.log2(start / finish))
    places = [place for place, sigma in enumerate(sigmas.tolist()) if place and sigma <= first + SAME_LEVEL]
    if len(places) < rounds:
        raise ValueRangeError(
            f"{start} samples are halved {rounds} times until {finish} are left, but the grid has {len(places)} levels at or "
            f"below {first:g}; take more steps, or begin to halve at a higher level"
        )
    chosen = torch.linspace(places[0], places[-1], rounds).round().int().tolist()
    return tuple(
        Cut(float(sigmas[place]), max(finish, math.ceil(start / 2 ** (halving + 1))))
        for halving, place in enumerate(chosen)
    )


def check_band(band: Band) -> None:
    """Refuse what is no band of levels.

    Raises:
        ValueRangeError: it falls, or reaches out of [0, 1).
    """
    if not 0 <= band[0] <= band[1] < 1:
        raise ValueRangeError(f"a band of levels must rise within [0, 1), got {band}")


def inside(band: Band, sigma: float) -> bool:
    """Whether a level lies in a band, its ends among it."""
    return band[0] - SAME_LEVEL <= sigma <= band[1] + SAME_LEVEL


def _grouped(reward: Tensor, group_size: int) -> Tensor:
    if reward.ndim != 1 or not len(reward) or len(reward) % group_size:
        raise ShapeError(f"rewards must be [b] of whole groups of {group_size}, got {list(reward.shape)}")
    return reward.detach().double().cpu().view(-1, group_size)


def _refuse_failed(failed: Tensor) -> None:
    if failed.any():
        raise WorkError(
            f"no sample of prompt {int(failed.nonzero()[0])} has a reward: there is nothing to choose by; see why the reward "
            "fails for it"
        )
