"""What a generator is rewarded for: terms that judge finished samples, and their mixture.

A term reads latents (a reward model here, behind HTTP, or an actor elsewhere: whatever is a `RewardFunction`) or pixels (any
scorer of pictures), which are decoded once, and only if somebody asks. A sample that a term cannot judge is masked: it
is never a reward of zero.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dina_lrm.alignment.algorithms.base import Judged
from dina_lrm.errors import ConfigError, InputError, NoAnswerError, ShapeError, WorkError
from dina_lrm.noise import Fusion
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.scoring.reward_model import RewardModel
from dina_lrm.types import Conditioning, NoisedState, Reward

__all__ = [
    "AWAY",
    "Finished",
    "LatentTerm",
    "Mixture",
    "Normalise",
    "PixelScorer",
    "PixelTerm",
    "Term",
    "Verdict",
    "Weighted",
]

PixelScorer: TypeAlias = Callable[[Tensor, Sequence[str]], Tensor | Sequence[float | None]]
# A judge that is not there: asking it for less would not help, waiting may.
AWAY = (NoAnswerError, ConnectionError, TimeoutError)
Normalise: TypeAlias = Literal["none", "batch", "group"]


@dataclass(frozen=True)
class Finished:
    """Samples that are done.

    Attributes:
        latents: clean `[b c h w]`, as the generator's family standardises them.
        prompts: one a sample.
        decode: latents to pixels `[b 3 y x]` in 0..1.
        seeds: of the noise that rewards add, one a sample; samples of one prompt have the same.
        group_size: samples of one prompt stand behind each other, so many of each.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    decode: Callable[[Tensor], Tensor]
    seeds: tuple[int, ...]
    group_size: int = 1

    def __post_init__(self) -> None:
        if not len(self.latents) == len(self.prompts) == len(self.seeds):
            raise ShapeError(
                f"{len(self.latents)} samples need as many prompts and seeds, got {len(self.prompts)} and {len(self.seeds)}"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def pixels(self) -> Tensor:
        """Decoded once, however many terms ask; differentiable in the latents where they ask for gradients."""
        return self.decode(self.latents)

    def only(self, places: Sequence[int]) -> Finished:
        """Some of them; pixels that are there come along."""
        rows = torch.tensor(list(places), device=self.latents.device)
        part = Finished(
            self.latents[rows],
            tuple(self.prompts[place] for place in places),
            self.decode,
            tuple(self.seeds[place] for place in places),
        )
        if "pixels" in self.__dict__:
            part.__dict__["pixels"] = self.pixels[rows]
        return part

    def zeroed_where(self, broken: Tensor) -> Finished:
        """The same, but for the latents of some `[b]`: no gradient leads back to them."""
        if not broken.any():
            return self
        mask = broken.view(-1, *[1] * (self.latents.ndim - 1))
        return replace(self, latents=torch.where(mask, torch.zeros_like(self.latents), self.latents))


class Term(ABC):
    """One judge of finished samples.

    Attributes:
        differentiable: whether gradients pass from its rewards to the latents.
        dealt_out: processes hold its network together, so all must ask equally often: for all samples in one go, whatever they
            are. A failure is then the end, for the others wait.
    """

    differentiable: bool

    @property
    def dealt_out(self) -> bool:
        return False

    @abstractmethod
    def ask(self, samples: Finished) -> Tensor:
        """Rewards `[b]`; NaN where there is none. An exception says that the samples as a whole could not be judged."""

    def of_state(self, state: NoisedState, prompts: Sequence[str]) -> Tensor:
        """Rewards `[b]` of noised states as they stand.

        Raises:
            ConfigError: it reads no states.
        """
        raise ConfigError(f"{type(self).__name__} reads finished samples only; states are read by a local latent model")

    def __call__(self, samples: Finished) -> Judged:
        """Rewards of samples, with those masked that could not be judged.

        What cannot be judged together is asked for one by one, so that one bad sample costs no other its reward. Wrong input
        (`InputError`) is raised. When not one sample can be judged, what the last one raised is raised.

        Raises:
            WorkError: a network that is dealt out failed.
        """
        finite = samples.latents.detach().flatten(1).isfinite().all(dim=1)
        if self.dealt_out:
            return _judged(torch.where(finite, self.ask(samples.zeroed_where(~finite)), torch.nan))
        places = finite.nonzero().flatten().tolist()
        blank = samples.latents.detach().new_full((len(samples),), math.nan, dtype=torch.float32)
        if not places:
            return Judged(blank, torch.zeros_like(blank, dtype=torch.bool))
        part = samples if len(places) == len(samples) else samples.only(places)
        found = self._as_far_as_possible(part)
        return _judged(blank.to(found.dtype).index_put((torch.tensor(places, device=blank.device),), found))

    def _as_far_as_possible(self, samples: Finished) -> Tensor:
        try:
            return self.ask(samples)
        except (InputError, *AWAY):
            raise
        except Exception:
            if len(samples) == 1:
                raise
        found: list[Tensor | None] = []
        last: Exception | None = None
        for place in range(len(samples)):
            try:
                found.append(self.ask(samples.only([place])))
            except (InputError, *AWAY):
                raise
            except Exception as error:
                last = error
                found.append(None)
        judged = [one for one in found if one is not None]
        if not judged:
            assert last is not None
            raise last
        warnings.warn(f"{len(found) - len(judged)} of {len(found)} samples were not judged: {last!r}", stacklevel=2)
        return torch.cat([judged[0].new_full((1,), math.nan) if one is None else one for one in found])


def _judged(rewards: Tensor) -> Judged:
    """Rewards `[b]`, NaN where there is none: where it means nothing, a number keeps NaN out of sums and of gradients."""
    valid = rewards.detach().isfinite()
    return Judged(torch.where(valid, rewards, torch.zeros_like(rewards)), valid)


@dataclass(frozen=True)
class LatentTerm(Term):
    """A latent reward, of whoever is a `RewardFunction`.

    Attributes:
        reward: a model in this process, through which gradients pass, or a client of one.
        text: prompts as the reward reads them; None sends the words.
        sigmas: noise levels.
        draws: noise tensors a level.
        fusion: as in `RewardFunction.score`.
        band: two levels between which one is drawn by the samples' seeds, in place of `sigmas`: harder to exploit than one.
    """

    reward: RewardFunction
    text: Callable[[Sequence[str]], Conditioning] | None = None
    sigmas: tuple[float, ...] = (0.4,)
    draws: int = 1
    fusion: Fusion = "mean"
    band: tuple[float, float] | None = None
    differentiable: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.band is not None and not 0 <= self.band[0] < self.band[1] <= 1:
            raise ConfigError(f"band must be two rising levels in 0..1, got {self.band}")
        object.__setattr__(self, "differentiable", isinstance(self.reward, RewardModel))

    @property
    def dealt_out(self) -> bool:
        return isinstance(self.reward, RewardModel) and self.reward.network.dealt_out

    def ask(self, samples: Finished) -> Tensor:
        return self.scored(samples, self._levels(samples)).reward.to(samples.latents.device)

    def scored(self, samples: Finished, sigmas: Sequence[float], draws: int | None = None) -> Reward:
        """The whole answer at given levels; `draws` takes the place of the term's own."""
        with self._end_where_others_wait():
            return self.reward.score(
                prompts=samples.prompts if self.text is None else None,
                conditioning=None if self.text is None else self.text(samples.prompts),
                latents=samples.latents,
                sigmas=sigmas,
                draws=draws or self.draws,
                fusion=self.fusion,
                seed=samples.seeds,
            )

    def of_state(self, state: NoisedState, prompts: Sequence[str]) -> Tensor:
        if self.text is None:
            return super().of_state(state, prompts)
        with self._end_where_others_wait():
            return self.reward.score_state(state, self.text(prompts)).reward.to(state.sigma.device)

    @contextmanager
    def _end_where_others_wait(self) -> Iterator[None]:
        """A network that is dealt out fails for good: other processes are in the middle of it.

        Raises:
            WorkError: it did.
        """
        try:
            yield
        except (InputError, WorkError):
            raise
        except Exception as error:
            if not self.dealt_out:
                raise
            raise WorkError(f"a reward whose network several processes hold together failed: {error!r}") from error

    def _levels(self, samples: Finished) -> tuple[float, ...]:
        if self.band is None:
            return self.sigmas
        low, high = self.band
        drawn = torch.rand((), generator=torch.Generator().manual_seed(samples.seeds[0]))
        return (low + (high - low) * float(drawn),)


@dataclass(frozen=True)
class PixelTerm(Term):
    """A scorer of pictures: `scorer(pixels [b 3 y x] in 0..1, prompts)` gives one number a picture, or None.

    Attributes:
        scorer: asked.
        differentiable: whether gradients are to pass through it and the decoder.
    """

    scorer: PixelScorer
    differentiable: bool = True

    def ask(self, samples: Finished) -> Tensor:
        if not self.differentiable:
            with torch.no_grad():
                return self._scored(samples.pixels.detach(), samples)
        return self._scored(samples.pixels, samples)

    def _scored(self, pixels: Tensor, samples: Finished) -> Tensor:
        found = self.scorer(pixels, samples.prompts)
        if not isinstance(found, Tensor):
            found = torch.tensor([math.nan if value is None else float(value) for value in found])
        if found.shape != (len(samples),):
            raise ConfigError(
                f"a scorer of pictures must give one number a picture, [{len(samples)}], got {list(found.shape)}"
            )
        return found.to(samples.latents.device)


@dataclass(frozen=True)
class Weighted:
    """A term in a mixture.

    Attributes:
        name: in metrics.
        term: the judge.
        weight: of its (normalised) rewards.
    """

    name: str
    term: Term
    weight: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What a mixture found.

    Attributes:
        total: what is learned from.
        parts: what each term said, by name.
    """

    total: Judged
    parts: Mapping[str, Judged]


Ask: TypeAlias = Callable[[str, Callable[[], Judged], int], Judged]


def directly(name: str, ask: Callable[[], Judged], count: int) -> Judged:
    """Call a term: what it raises is raised."""
    return ask()


@dataclass(frozen=True)
class Mixture:
    """`sum_i weight_i (r_i - mean_i) / std_i`, or without normalisation `sum_i weight_i r_i`.

    Normalised "group" takes mean and spread of each prompt's samples, so that every term has its say in each group whatever
    its scale (GDPO, arXiv 2601.05242); "batch" those of all samples. A sample that one term could not judge is masked.

    Attributes:
        terms: at least one.
        normalise: over which samples.
    """

    terms: tuple[Weighted, ...]
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        names = [weighted.name for weighted in self.terms]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a mixture needs one reward or more, each of its own name, got {names}")

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass through all of them."""
        return all(weighted.term.differentiable for weighted in self.terms)

    def __call__(self, samples: Finished, ask: Ask = directly) -> Verdict:
        """Judge samples by every term.

        Args:
            samples: to be judged.
            ask: calls a term, and says what is to become of one that fails.
        """
        self._check_group(samples.group_size)
        parts = {w.name: ask(w.name, partial(w.term, samples), len(samples)) for w in self.terms}
        total = self._total(parts, samples.group_size)
        if samples.latents.requires_grad:
            samples.latents.register_hook(partial(_only_where, total.valid))  # type: ignore[no-untyped-call]
        return Verdict(total, parts)

    def of_state(self, state: NoisedState, prompts: Sequence[str], group_size: int, ask: Ask = directly) -> Verdict:
        """Judge noised states as they stand."""
        self._check_group(group_size)

        def judge(term: Term) -> Judged:
            return _judged(term.of_state(state, prompts))

        parts = {w.name: ask(w.name, partial(judge, w.term), len(state)) for w in self.terms}
        return Verdict(self._total(parts, group_size), parts)

    def _check_group(self, group_size: int) -> None:
        if self.normalise == "group" and group_size == 1:
            raise ConfigError('rewards cannot be normalised over a group of one sample; use normalise="batch"')

    def _total(self, parts: Mapping[str, Judged], group_size: int) -> Judged:
        valid = torch.stack([judged.valid for judged in parts.values()]).all(dim=0)
        total = torch.zeros(())
        for weighted in self.terms:
            judged = parts[weighted.name]
            rewards = judged.reward
            if self.normalise != "none":
                rewards = _standardised(judged, group_size if self.normalise == "group" else len(judged.reward))
            total = total.to(rewards.device) + weighted.weight * rewards
        return Judged(torch.where(valid, total, torch.zeros_like(total)), valid)


def _only_where(valid: Tensor, gradient: Tensor) -> Tensor:
    """A gradient without what comes from samples that were not judged: theirs may be NaN, which no factor of 0 removes."""
    return torch.where(valid.view(-1, *[1] * (gradient.ndim - 1)), gradient, torch.zeros_like(gradient))


def _standardised(judged: Judged, size: int) -> Tensor:
    """`(r - mean) / (std + 1e-4)` over each `size` samples in a row, of those that were judged."""
    reward, valid = judged.reward.view(-1, size), judged.valid.view(-1, size)
    known, count = reward.detach() * valid, valid.sum(dim=1, keepdim=True).clamp_min(1)
    mean = known.sum(dim=1, keepdim=True) / count
    spread = (((known - mean) * valid).square().sum(dim=1, keepdim=True) / count).sqrt()
    return ((reward - mean) / (spread + 1e-4)).flatten()
