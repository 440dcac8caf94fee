"""The records that travel: what goes together is one frozen record whose fields name shape and unit.

Axes: `b` batch, `s` draws, `k` levels, `c h w` latents, `y x` pixels, `l` prompt tokens, `n` tokens of a stream,
`d` backbone width, `e` prompt-embedding width, `p` pooled width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor

from dina_lrm.errors import ShapeError, ValueRangeError

__all__ = [
    "TIE_BAND",
    "Comparison",
    "Conditioning",
    "FeatureShape",
    "Features",
    "NoisedState",
    "PreferenceBatch",
    "PreferenceGroups",
    "Ranking",
    "Reward",
    "Spread",
    "TensorRecord",
    "check_finite",
    "check_sigma",
]

TIE_BAND = 0.05  # probabilities within so much of 1/2 are a tie, unless told otherwise


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueRangeError: naming the first bad position.
    """
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise ValueRangeError(f"{name} has a value that is not finite at index {bad}; every element must be finite")


def check_sigma(sigma: Tensor) -> None:
    """Refuse noise levels outside [0, 1].

    Raises:
        ValueRangeError: naming the first bad value.
    """
    outside = ~((sigma >= 0) & (sigma <= 1))
    if outside.any():
        raise ValueRangeError(f"sigma must lie in [0, 1], got {sigma[outside][0].item():g}")


@dataclass(frozen=True)
class TensorRecord:
    """A frozen record of tensors that move together."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same record with `function` applied to each tensor, also inside tuples."""

        def apply(value: object) -> object:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, TensorRecord):
                return value.map(function)
            if isinstance(value, tuple):
                return tuple(apply(v) for v in value)
            return value

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move every tensor; `dtype` applies to floating tensors only."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))


@dataclass(frozen=True)
class Conditioning(TensorRecord):
    """What the prompt says to a backbone.

    Attributes:
        prompt_embeds: per-token text states `[b l e]`.
        pooled_prompt_embeds: pooled text state `[b p]`; None for a backbone that takes none.
        prompt_mask: which tokens are the prompt's, bool `[b l]`; None where all are read, as in SD3 and FLUX.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None
    prompt_mask: Tensor | None = None

    def __post_init__(self) -> None:
        embeds, pooled, mask = self.prompt_embeds, self.pooled_prompt_embeds, self.prompt_mask
        if embeds.ndim != 3 or (pooled is not None and pooled.ndim != 2):
            told = "none" if pooled is None else list(pooled.shape)
            raise ShapeError(
                f"prompt_embeds must be [b l e] and pooled_prompt_embeds [b p], got {list(embeds.shape)} and {told}"
            )
        if pooled is not None and len(embeds) != len(pooled):
            raise ShapeError(
                "prompt_embeds and pooled_prompt_embeds must have the same batch size, "
                f"got {len(embeds)} and {len(pooled)}"
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape != embeds.shape[:2]):
            raise ShapeError(f"prompt_mask must be bool {list(embeds.shape[:2])}, got {mask.dtype} {list(mask.shape)}")

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, index: Tensor | slice) -> Conditioning:
        return self.map(lambda t: t[index])

    def repeat(self, times: int) -> Conditioning:
        """The batch stacked `times` times: `[times * b ...]`, the whole batch first, then again."""
        return self.map(lambda t: t.repeat(times, *[1] * (t.ndim - 1)))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch axis; masked prompts of several lengths are padded to the longest.

        Raises:
            ShapeError: lengths differ and there is no mask to tell padding from prompt.
        """
        lengths = {part.prompt_embeds.shape[1] for part in parts}
        if len(lengths) > 1:
            if any(part.prompt_mask is None for part in parts):
                raise ShapeError(f"prompt_embeds without a mask must have one length, got {sorted(lengths)}")
            parts = [part._padded(max(lengths)) for part in parts]
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]),
            _cat_or_none([part.pooled_prompt_embeds for part in parts]),
            _cat_or_none([part.prompt_mask for part in parts]),
        )

    def _padded(self, length: int) -> Conditioning:
        extra = length - self.prompt_embeds.shape[1]
        assert self.prompt_mask is not None
        return Conditioning(
            torch.nn.functional.pad(self.prompt_embeds, (0, 0, 0, extra)),
            self.pooled_prompt_embeds,
            torch.nn.functional.pad(self.prompt_mask, (0, extra)),
        )


def _cat_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if present and len(present) != len(tensors):
        raise ShapeError(f"{len(tensors)} parts must all have a pooled state and a mask or none, got {len(present)}")
    return torch.cat(present) if present else None


@dataclass(frozen=True)
class NoisedState(TensorRecord):
    """Noised latents with their noise level: what a diffusion network reads.

    Attributes:
        noised_latents: `alpha * latents + sigma * noise`, `[b c h w]`.
        sigma: noise level of each sample `[b]` in 0..1.
    """

    noised_latents: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        if self.noised_latents.ndim < 4 or self.sigma.shape != self.noised_latents.shape[:1]:
            raise ShapeError(
                "a noised state has noised_latents [b c h w] and sigma [b], "
                f"got {list(self.noised_latents.shape)} and {list(self.sigma.shape)}"
            )

    def __len__(self) -> int:
        return len(self.sigma)

    def __getitem__(self, index: Tensor | slice) -> NoisedState:
        return self.map(lambda t: t[index])

    @staticmethod
    def cat(parts: Sequence[NoisedState]) -> NoisedState:
        """Join along the batch axis."""
        return NoisedState(torch.cat([p.noised_latents for p in parts]), torch.cat([p.sigma for p in parts]))


@dataclass(frozen=True)
class FeatureShape:
    """What a head must know of the features it will read.

    Attributes:
        image_widths: of the tokens of each image tap.
        image_scales: how many times coarser each tap's grid is than the network's finest; taps of one scale have equally
            many tokens.
        text_widths: of the tokens of each text tap.
        temb_width: of the time embedding.
    """

    image_widths: tuple[int, ...]
    image_scales: tuple[int, ...]
    text_widths: tuple[int, ...]
    temb_width: int

    @staticmethod
    def uniform(width: int, temb_width: int, num_image_taps: int, num_text_taps: int) -> FeatureShape:
        """Of a transformer, whose taps are all alike."""
        return FeatureShape((width,) * num_image_taps, (1,) * num_image_taps, (width,) * num_text_taps, temb_width)


@dataclass(frozen=True)
class Features(TensorRecord):
    """What a backbone saw: hidden tokens after each tapped block.

    Attributes:
        image_tokens: one `[b n d]` per image tap; n and d differ between the taps of a UNet.
        text_tokens: one `[b m d]` per text tap.
        temb: time (and pooled text) embedding `[b d]`.
        text_mask: which text tokens are the prompt's, bool `[b m]`; None where all are.
    """

    image_tokens: tuple[Tensor, ...]
    text_tokens: tuple[Tensor, ...]
    temb: Tensor
    text_mask: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> Features:
        return self.map(lambda t: t[index])

    def float(self) -> Features:
        """In float32, the mask as it is."""
        return self.to(dtype=torch.float32)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """Join along the batch axis; masked text of several lengths is padded to the longest."""
        longest = max(p.text_tokens[0].shape[1] for p in parts)
        parts = [p._padded(longest - p.text_tokens[0].shape[1]) for p in parts]
        return Features(
            tuple(torch.cat(taps) for taps in zip(*(p.image_tokens for p in parts), strict=True)),
            tuple(torch.cat(taps) for taps in zip(*(p.text_tokens for p in parts), strict=True)),
            torch.cat([p.temb for p in parts]),
            _cat_or_none([p.text_mask for p in parts]),
        )

    def _padded(self, extra: int) -> Features:
        if not extra or self.text_mask is None:
            return self
        pad = torch.nn.functional.pad
        text = tuple(pad(tokens, (0, 0, 0, extra)) for tokens in self.text_tokens)
        return Features(self.image_tokens, text, self.temb, pad(self.text_mask, (0, extra)))


@dataclass(frozen=True)
class PreferenceBatch(TensorRecord):
    """Labelled comparisons, ready for a training step.

    Attributes:
        latents_chosen: clean latents `[b c h w]` of what more annotators preferred.
        latents_rejected: clean latents `[b c h w]` of the other.
        conditioning: of the shared prompt, batch `b`.
        target: share of votes for chosen `[b]` in 0..1; 0.5 is a tie, 1 a unanimous choice.
    """

    latents_chosen: Tensor
    latents_rejected: Tensor
    conditioning: Conditioning
    target: Tensor

    def __post_init__(self) -> None:
        if self.latents_chosen.shape != self.latents_rejected.shape:
            raise ShapeError(
                "latents of chosen and rejected must have one shape, "
                f"got {list(self.latents_chosen.shape)} and {list(self.latents_rejected.shape)}"
            )
        if not len(self.latents_chosen) == len(self.conditioning) == len(self.target):
            raise ShapeError(
                f"{len(self.latents_chosen)} pairs need as many prompts and targets, "
                f"got {len(self.conditioning)} and {len(self.target)}"
            )

    def __len__(self) -> int:
        return len(self.target)

    def grouped(self) -> PreferenceGroups:
        """The same comparisons as groups of two: all chosen, then all rejected."""
        group = torch.arange(len(self), device=self.target.device)
        return PreferenceGroups(
            latents=torch.cat([self.latents_chosen, self.latents_rejected]),
            conditioning=self.conditioning.repeat(2),
            group=group.repeat(2),
            chosen=group,
            rejected=group + len(self),
            target=self.target,
        )


@dataclass(frozen=True)
class PreferenceGroups(TensorRecord):
    """Labelled comparisons among the candidates of some prompts, each candidate once.

    A group is one prompt's candidates: they meet one sigma and one noise, so a candidate that several pairs share goes
    through the network once.

    Attributes:
        latents: clean latents of the candidates `[n c h w]`.
        conditioning: of each candidate's prompt, batch `n`.
        group: place of each candidate's group among the `g` of the batch `[n]`.
        chosen: place among the candidates of each pair's preferred one `[m]`.
        rejected: of the other, in the same group `[m]`.
        target: share of votes for chosen `[m]` in 0..1.
    """

    latents: Tensor
    conditioning: Conditioning
    group: Tensor
    chosen: Tensor
    rejected: Tensor
    target: Tensor

    def __post_init__(self) -> None:
        if not len(self.latents) == len(self.conditioning) == len(self.group):
            raise ShapeError(
                f"{len(self.latents)} candidates need as many prompts and group numbers, "
                f"got {len(self.conditioning)} and {len(self.group)}"
            )
        if not self.chosen.shape == self.rejected.shape == self.target.shape == (len(self.target),):
            raise ShapeError(
                "chosen, rejected and target must be [m], "
                f"got {list(self.chosen.shape)}, {list(self.rejected.shape)} and {list(self.target.shape)}"
            )
        if self.group.device.type == "cpu":  # elsewhere looking at values would wait for the device
            self._check_places()

    def _check_places(self) -> None:
        for name, places in (("chosen", self.chosen), ("rejected", self.rejected)):
            outside = (places < 0) | (places >= len(self.group))
            if outside.any():
                raise ShapeError(f"{name} must name one of {len(self.group)} candidates, got {int(places[outside][0])}")
        across = self.group[self.chosen] != self.group[self.rejected]
        if across.any():
            pair = int(across.nonzero()[0])
            raise ShapeError(f"a pair must compare candidates of one group, pair {pair} compares two groups")
        numbers = sorted(set(self.group.tolist()))
        if numbers != list(range(len(numbers))):
            raise ShapeError(f"groups must be numbered from 0 without a gap, got {numbers}")

    def __len__(self) -> int:
        return len(self.target)

    @property
    def num_groups(self) -> int:
        """How many groups there are; their numbers run from 0 without a gap."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def grouped(self) -> PreferenceGroups:
        """Itself."""
        return self


@dataclass(frozen=True)
class Reward(TensorRecord):
    """The answer to a scoring request.

    Attributes:
        reward: calibrated utility `[b]`: what users and trainers see.
        utility: mean utility over the draws `[b]`, uncalibrated.
        utility_std: spread of utility over draws and levels `[b]`; with a single one, the spread that the model's law of
            choice states for its sigma.
        standard_error: of `utility` as an estimate over noise `[b]`: measured from two or more draws (or antithetic
            pairs of draws), else from the law.
        draws: utility of each draw `[b s]`; NaN where a sample was decided before the draw.
        sigmas: noise level of each draw `[s]`; with `fusion="tokens"` the levels `[k]` that each draw joins.
        seed: what the noise was drawn from; one for all, or one a sample; None if the noise was given.
        spent: how many noised states the network read for each sample `[b]`, int64.
    """

    reward: Tensor
    utility: Tensor
    utility_std: Tensor
    standard_error: Tensor
    draws: Tensor
    sigmas: Tensor
    seed: int | tuple[int, ...] | None
    spent: Tensor

    def __len__(self) -> int:
        return len(self.reward)


@dataclass(frozen=True)
class Comparison:
    """Which of two candidates is preferred.

    Attributes:
        probability: that a is preferred to b: the model's law of choice at the margin averaged over the draws.
        interval: 95 % interval of that probability over noise draws.
        margin: utility of a less utility of b.
        reward_a: calibrated reward of a.
        reward_b: calibrated reward of b.
        tie_band: probabilities within so much of 1/2 are called a tie.
        decided: False if an adaptive comparison spent its budget before its test was sure; True wherever no test was
            asked for.
        spent: how many noised states the network read for the two.
    """

    probability: float
    interval: tuple[float, float]
    margin: float
    reward_a: float
    reward_b: float
    tie_band: float
    decided: bool
    spent: int

    @property
    def verdict(self) -> Literal["a", "b", "tie"]:
        """What is preferred; "tie" where `|probability - 1/2| <= tie_band`."""
        if abs(self.probability - 0.5) <= self.tie_band:
            return "tie"
        return "a" if self.probability > 0.5 else "b"


@dataclass(frozen=True)
class Ranking:
    """Candidates in order.

    Attributes:
        order: indices of the candidates, best first; of the best only, where so many were asked for.
        reward: of each candidate, in the order given.
        lead: the first of the order (a) against the second (b); None for a single candidate.
        decided: False if an adaptive ranking spent its budget before its top was sure.
    """

    order: tuple[int, ...]
    reward: Reward
    lead: Comparison | None
    decided: bool


@dataclass(frozen=True)
class Spread:
    """What is known of how far a number, such as the utility margin of two candidates, moves from one draw of noise to the next.

    Attributes:
        variance: s0^2 of one draw.
        dof: degrees of freedom d0 behind it: how many draws the knowledge is worth, infinite if it is certain (Smyth 2004).
    """

    variance: float
    dof: float

    def __post_init__(self) -> None:
        if not (self.variance >= 0 and self.dof > 0):
            raise ValueRangeError(
                f"a spread needs a variance of 0 or more and dof above 0, got {self.variance:g} and {self.dof:g}"
            )
