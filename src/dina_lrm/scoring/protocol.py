"""What can be asked for a reward, whoever answers: a model in this process, or one behind HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from PIL import Image
from torch import Tensor

from dina_lrm.noise import Adaptive, Fusion
from dina_lrm.types import TIE_BAND, Comparison, Conditioning, NoisedState, Ranking, Reward

Images: TypeAlias = Sequence[Image.Image] | Tensor
Candidate: TypeAlias = Image.Image | Tensor


class RewardFunction(Protocol):
    """Asked for rewards; `RewardModel` and `RewardClient` are two of them, and callers cannot tell which they hold.

    The same request gives the same numbers. A failure is an exception: `InputError` for a request that is wrong,
    `WorkError` for one that could not be answered. It is never a reward of zero.
    """

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
    ) -> Reward:
        """Score images or latents under prompts.

        One prompt serves any number of images, whose sizes may differ; only those of one size meet the same noise.

        Args:
            prompts: one, or one a sample; or give `conditioning`.
            conditioning: encoded prompts; or give `prompts`.
            images: pictures or pixels `[b 3 y x]` in 0..1; or give `latents`.
            latents: clean latents `[b c h w]`; or give `images`.
            sigmas: noise levels, each in [0, 1].
            draws: noise tensors a level; or `Adaptive` with the standard error that each sample is drawn to.
            fusion: "mean" averages utilities over levels and draws; "weighted" weighs each level by the inverse of its
                variance; "tokens" is the paper's ensemble, one head pass over the levels' joined tokens.
            antithetic: each second draw is the negative of the one before.
            seed: of the noise; one for all, or one a sample.

        Raises:
            ShapeError: counts or shapes do not fit together.
            ValueRangeError: sigma outside [0, 1], a negative seed, values that are not finite.
        """
        ...

    def score_state(self, state: NoisedState, conditioning: Conditioning) -> Reward:
        """Score a state that is noised already, such as one inside a sampler: nothing is added to it.

        Args:
            state: noised latents `[b c h w]` and their sigma `[b]`.
            conditioning: of each sample, or one for all.

        Raises:
            ShapeError: counts or shapes do not fit together.
            ValueRangeError: sigma outside [0, 1], or latents that are not finite.
        """
        ...

    def compare(
        self,
        *,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        a: Candidate,
        b: Candidate,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 4,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = TIE_BAND,
    ) -> Comparison:
        """Probability that a is preferred to b, by the model's law of choice.

        Both meet the same noise where their sizes agree; where they do not, the interval is the wider for it, and resizing
        one to the other is better. The probability is that of the mean margin under the mean variance of the levels; its
        interval carries the margin's 95 % interval over draws (Student's t) through the law.

        Args:
            prompt: of both; or give `conditioning`.
            conditioning: the encoded prompt, a batch of one.
            a: picture, pixels `[3 y x]` in 0..1, or latents `[c h w]`.
            b: the other, in the same form.
            sigmas: noise levels, each in [0, 1].
            draws: noise tensors a level, 2 or more for an interval from measurement; or `Adaptive`, which stops when the
                comparison is decided.
            fusion: as in `score`.
            antithetic: as in `score`.
            seed: of the noise that both meet.
            tie_band: probabilities within so much of 1/2 are a tie.

        Raises:
            ShapeError: a and b are not of one form.
        """
        ...

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
    ) -> Ranking:
        """Order candidates for one prompt, best first.

        Those of one size meet the same noise. Adaptive draws go to candidates that may still be the best: those that one
        surely beats are drawn no more, so their rewards rest on fewer draws.

        Args:
            prompt: of all; or give `conditioning`.
            conditioning: the encoded prompt, a batch of one.
            images: as in `score`.
            latents: as in `score`.
            sigmas: noise levels, each in [0, 1].
            draws: noise tensors a level, or `Adaptive`.
            fusion: as in `score`.
            antithetic: as in `score`.
            seed: of the noise that all meet.
            tie_band: the best and the runner-up are a tie where the probability lies within so much of 1/2.
        """
        ...

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
    ) -> Ranking:
        """The `k` best of the candidates, best first: a ranking whose order is cut; arguments as in `rank`.

        Raises:
            ValueRangeError: k below 1 or above the number of candidates.
        """
        ...
