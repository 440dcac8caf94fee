"""The public face: a reward model that is asked for scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.checkpoint import CalibrationConfig, LoadedModel, ModelConfig, fingerprint, load_any, save_model
from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.images import group_by_size
from dina_lrm.noise import Adaptive, Fusion, NoiseEnsemble
from dina_lrm.preference import Calibration, Likelihood
from dina_lrm.scoring.arguments import first_of, levels_of, pair_of, seeds_of
from dina_lrm.scoring.chunks import in_chunks
from dina_lrm.scoring.protocol import Images
from dina_lrm.scoring.questions import Asker, Candidates, Part, Question, Reading, answer_all
from dina_lrm.scoring.reader import read
from dina_lrm.types import TIE_BAND, Comparison, Conditioning, Features, NoisedState, Ranking, Reward, check_finite

T = TypeVar("T")
FEWEST_STATES = 4  # in one forward where nobody said how many: an ensemble of one sample


class RewardModel:
    """A latent reward model: scores noised latents of a diffusion model under a prompt.

    A score is a function of its inputs: the same seed gives the same number, alone or in a batch.

    Attributes:
        network: backbone and head, a torch module.
        config: what the model folder says.
        likelihood: law of choice that turns utilities into probabilities.
        calibration: utility to reward.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.network = loaded.network
        self.config: ModelConfig = loaded.config
        self.likelihood: Likelihood = loaded.config.likelihood.build()
        self.calibration: Calibration = loaded.config.calibration.build()

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        base: Any = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        merge_adapter: bool | None = None,
    ) -> RewardModel:
        """Load a model folder, ours or of the authors' published layout.

        Args:
            path: folder or hub id.
            base: diffusers pipeline folder, hub id (`owner/name`, or `owner/name@revision`) or loaded pipeline; None takes
                the one that the model names.
            device: where to put it.
            dtype: of the backbone's base weights; head and adapter stay float32.
            revision: of the model's hub repository.
            merge_adapter: True adds the adapter to the base weights, in float32, so that a score costs what the bare base
                costs; False keeps it apart; None adds it unless `base` is a loaded pipeline, whose weights are shared.

        Raises:
            CheckpointError: the folder is not whole, or not a model.
            BaseMismatchError: the base is not the one that the model was trained on.
        """
        return cls(load_any(path, base, device, dtype, revision, merge_adapter))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write our model folder; it appears whole or not at all."""
        save_model(folder, self.network, self.config)

    def with_calibration(self, calibration: CalibrationConfig) -> RewardModel:
        """The same network under another calibration, such as `dina_lrm.evals.calibrate` fits; nothing is copied."""
        return RewardModel(LoadedModel(self.network, self.config.model_copy(update={"calibration": calibration})))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that its utilities depend on, the weights among it, as it is when it is first asked for."""
        return fingerprint(self.network, self.config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.backbone.device

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        """Text states `prompt_embeds [b l e]` and `pooled_prompt_embeds [b p]`, as the base's own pipeline makes them.

        Args:
            prompts: one or more.
            max_sequence_length: of the long text encoder; None takes the length the model was trained with (128 in
                the published models). Scores depend on it.

        Raises:
            ValueRangeError: an empty list, or something other than strings in it.
        """
        return self.network.backbone.encode_prompts(prompts, max_sequence_length)

    def cut_prompts(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than the model reads: what was warned of when they were encoded."""
        return self.network.backbone.cut_prompts(prompts)

    def encode_images(self, images: Images) -> Tensor:
        """Pictures, or pixels `[b 3 y x]` in 0..1, to latents `[b c h w]`: posterior mode, shifted and scaled.

        Pictures larger than the base's native area are reduced to it and sides are rounded; pixels are taken as they are.

        Raises:
            ShapeError: sizes differ, or pixels whose sides are no multiples of the backbone's.
        """
        backbone = self.network.backbone
        if isinstance(images, Tensor):
            return backbone.encode_images(images.to(self.device))
        sizes = self._by_size(images)
        if len(sizes) > 1:
            told = ", ".join(f"{pixels.shape[3]} x {pixels.shape[2]}" for _, pixels in sizes)
            raise ShapeError(
                f"images to be encoded in one tensor must have one size, got {told}; encode each by itself"
            )
        return backbone.encode_images(sizes[0][1].to(self.device))

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """What the head reads: tokens after each tap, and the time embedding."""
        return self.network.features(state.to(self.device), conditioning.to(self.device))

    def utility(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """Utility `[b]` of noised states, differentiable in `state.noised_latents`."""
        utility: Tensor = self.network(state.to(self.device), conditioning.to(self.device))
        return utility

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
        noise: Tensor | None = None,
        max_batch_size: int | None = None,
        memory_budget: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> Reward:
        """As `RewardFunction.score`; differentiable in `latents` where gradients are enabled.

        `noise` `[b c h w]` takes the place of seeded noise at every level; `draws` must then be 1. `max_batch_size` is the
        most states (samples x levels x draws) in one forward pass; None takes as many as there are samples, and never less
        than 4. Out of memory halves it and goes on. `memory_budget` says instead how many bytes of activations a pass may
        take. `gradient_checkpointing` keeps no activations of a pass for the gradient and computes them again: memory is
        that of one pass, whatever their number.
        """
        if max_batch_size is not None and (max_batch_size < 1 or memory_budget is not None):
            raise ValueRangeError(
                f"max_batch_size must be 1 or more and stand without memory_budget, got {max_batch_size} and {memory_budget}"
            )
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        candidates = self.candidates(
            prompts=prompts,
            conditioning=conditioning,
            images=images,
            latents=latents,
            seed=seed,
            noise=noise,
            max_batch_size=max_batch_size,
        )
        size = max_batch_size or self._states_at_once(candidates, memory_budget)
        return self.answer(self.asker.score(candidates, ensemble), size, gradient_checkpointing)

    def score_state(
        self, state: NoisedState, conditioning: Conditioning, gradient_checkpointing: bool = False
    ) -> Reward:
        """As `RewardFunction.score_state`; differentiable in `state.noised_latents`, `gradient_checkpointing` as in `score`."""
        if not len(state):
            raise ShapeError("a state to be scored must hold one sample or more, got none")
        check_finite("noised_latents", state.noised_latents)
        question = self.asker.state(state.to(self.device), self._checked(conditioning, len(state)))
        return self.answer(question, len(state), gradient_checkpointing)

    def compare(
        self,
        *,
        a: Image.Image | Tensor,
        b: Image.Image | Tensor,
        prompt: str | None = None,
        conditioning: Conditioning | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int | Adaptive = 4,
        fusion: Fusion = "mean",
        antithetic: bool = False,
        seed: int = 0,
        tie_band: float = TIE_BAND,
        max_batch_size: int | None = None,
    ) -> Comparison:
        """As `RewardFunction.compare`; `max_batch_size` is the most states in one forward pass, None takes 4."""
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        images, latents = pair_of(a, b)
        candidates = self._of_one_prompt(prompt, conditioning, images, latents, seed)
        with torch.no_grad():
            return self.answer(self.asker.compare(candidates, ensemble, tie_band), max_batch_size)

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
        max_batch_size: int | None = None,
    ) -> Ranking:
        """As `RewardFunction.rank`; `max_batch_size` as in `score`."""
        ensemble = NoiseEnsemble(levels_of(sigmas), draws, fusion, antithetic)
        candidates = self._of_one_prompt(prompt, conditioning, images, latents, seed)
        with torch.no_grad():
            return self.answer(
                self.asker.rank(candidates, ensemble, tie_band), max_batch_size or max(FEWEST_STATES, len(candidates))
            )

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
        max_batch_size: int | None = None,
    ) -> Ranking:
        """As `RewardFunction.best_of`; `max_batch_size` as in `score`."""
        ranking = self.rank(
            prompt=prompt,
            conditioning=conditioning,
            images=images,
            latents=latents,
            sigmas=sigmas,
            draws=draws,
            fusion=fusion,
            antithetic=antithetic,
            seed=seed,
            tie_band=tie_band,
            max_batch_size=max_batch_size,
        )
        return first_of(ranking, k)

    def probability(self, margin: Tensor, sigmas: Sequence[float], draws: int = 1) -> Tensor:
        """P(a preferred) for utility margins `[n]`, each a mean over levels and draws, by the calibrated law."""
        return self.asker.law.log_prob_of_mean(margin, [float(sigma) for sigma in sigmas], None, draws).exp()

    def candidates(
        self,
        *,
        prompts: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        images: Images | None = None,
        latents: Tensor | None = None,
        seed: int | Sequence[int] = 0,
        noise: Tensor | None = None,
        max_batch_size: int | None = None,
    ) -> Candidates:
        """Encode and check what a question is about; arguments as in `score`.

        Raises:
            ShapeError: counts or shapes do not fit together.
            ValueRangeError: values that are not finite, a negative seed.
        """
        parts = self._parts(images, latents, max_batch_size)
        count = sum(len(part.places) for part in parts)
        seeds = seeds_of(seed)
        if not isinstance(seeds, int) and len(seeds) != count:
            raise ShapeError(f"{count} samples need one seed or {count}, got {len(seeds)}")
        if noise is not None:
            check_finite("noise", noise)
            if len(parts) > 1:
                raise ShapeError(
                    f"noise [b c h w] fits pictures of one size, got {len(parts)} sizes; give a seed instead"
                )
            if noise.shape != parts[0].latents.shape:
                raise ShapeError(
                    f"noise must have the shape of latents {list(parts[0].latents.shape)}, got {list(noise.shape)}"
                )
        if (prompts is None) == (conditioning is None):
            raise ShapeError("give either prompts or conditioning, and not both")
        given = self.encode_prompts(prompts) if prompts is not None else conditioning
        assert given is not None
        return Candidates(tuple(parts), self._checked(given, count), seeds, noise)

    def answer(
        self, question: Question[T], max_batch_size: int | None = None, gradient_checkpointing: bool = False
    ) -> T:
        """Drive a question to its answer, reading its states in passes of at most `max_batch_size`.

        Args:
            question: of `asker`.
            max_batch_size: None takes as many as a reading has prompts, and never less than 4.
            gradient_checkpointing: as in `score`.

        Returns:
            Its answer.
        """
        try:
            reading = next(question)
            while True:
                size = max_batch_size or max(FEWEST_STATES, len(reading.conditioning))
                reading = question.send(self.read(reading, size, gradient_checkpointing))
        except StopIteration as done:
            answer: T = done.value
            return answer

    def answer_all(self, questions: Sequence[Question[T]], max_batch_size: int = 64) -> list[T]:
        """Drive many questions at once, without gradients: their states share passes of at most `max_batch_size`."""
        with torch.no_grad():
            return answer_all(questions, lambda reading: self.read(reading, max_batch_size), max_batch_size)

    def read(self, reading: Reading, max_batch_size: int | None = None, gradient_checkpointing: bool = False) -> Tensor:
        """Utilities `[len(reading)]` that a reading asks for: one forward pass, or passes of `max_batch_size` states.

        Raises:
            WorkError: out of memory with a single state, or a utility that is not finite.
        """
        return read(self.network, reading, max_batch_size or len(reading.rows), gradient_checkpointing)

    @property
    def asker(self) -> Asker:
        """Makes questions in the terms of this model, for whoever joins the readings of many of them."""
        scoring = self.config.scoring
        levels = self._snapped if scoring.snap_to_schedule else list
        law = self.calibration.law(self.likelihood)
        return Asker(self.network.backbone.process, law, self.calibration, levels, scoring.add_noise)

    @cached_property
    def _schedule(self) -> Tensor:
        return self.network.backbone.schedule_sigmas()

    def _snapped(self, sigmas: Sequence[float]) -> list[float]:
        """The nearest levels of the base scheduler's table."""
        table = self._schedule
        return [float(table[(table - sigma).abs().argmin()]) for sigma in sigmas]

    def _parts(self, images: Images | None, latents: Tensor | None, max_batch_size: int | None) -> list[Part]:
        if (images is None) == (latents is None):
            raise ShapeError("give either images or latents, and not both")
        if latents is not None:
            found = [(list(range(len(latents))), latents)]
        elif isinstance(images, Tensor):
            found = [(list(range(len(images))), self._encoded(images, max_batch_size))]
        else:
            assert images is not None
            found = [(places, self._encoded(pixels, max_batch_size)) for places, pixels in self._by_size(images)]
        parts = []
        for places, clean in found:
            if clean.ndim < 4 or not len(clean):
                raise ShapeError(f"latents must be [b c h w] with one sample or more, got {list(clean.shape)}")
            check_finite("latents", clean)
            # Float32: half precision would round sigma, alpha and noise apart from the level that the network is told.
            parts.append(Part(torch.tensor(places), clean.to(self.device).float()))
        return parts

    def _of_one_prompt(
        self,
        prompt: str | None,
        conditioning: Conditioning | None,
        images: Images | None,
        latents: Tensor | None,
        seed: int,
    ) -> Candidates:
        prompts = None if prompt is None else [prompt]
        if conditioning is not None and len(conditioning) != 1:
            raise ShapeError(f"candidates are compared under one prompt, got {len(conditioning)}")
        with torch.no_grad():
            return self.candidates(
                prompts=prompts, conditioning=conditioning, images=images, latents=latents, seed=seed
            )

    def _by_size(self, images: Sequence[Image.Image]) -> list[tuple[list[int], Tensor]]:
        backbone = self.network.backbone
        return group_by_size(images, backbone.native_size, backbone.image_multiple)

    def _checked(self, conditioning: Conditioning, count: int) -> Conditioning:
        if len(conditioning) not in (1, count):
            raise ShapeError(f"{count} samples need 1 or {count} prompts, got {len(conditioning)}")
        check_finite("prompt_embeds", conditioning.prompt_embeds)
        if conditioning.pooled_prompt_embeds is not None:
            check_finite("pooled_prompt_embeds", conditioning.pooled_prompt_embeds)
        return conditioning.to(self.device)

    def _states_at_once(self, candidates: Candidates, memory_budget: int | None) -> int:
        if memory_budget is None:
            return max(len(candidates), FEWEST_STATES)
        length = candidates.conditioning.prompt_embeds.shape[1]
        backbone = self.network.backbone
        # The largest shape sets how many states fit.
        needed, shape = max(
            (
                backbone.activation_bytes(part.latents.shape[1:], length, part.latents.requires_grad),
                part.latents.shape[1:],
            )
            for part in candidates.parts
        )
        if needed > memory_budget:
            raise ValueRangeError(
                f"one state of latents {list(shape)} takes {needed} bytes of activations, memory_budget is "
                f"{memory_budget}; give more, or smaller latents"
            )
        return memory_budget // needed

    def _encoded(self, pixels: Tensor, max_batch_size: int | None) -> Tensor:
        size = max_batch_size or FEWEST_STATES
        return in_chunks(
            len(pixels), size, lambda part: self.encode_images(pixels[part]), lambda parts: torch.cat(list(parts))
        )
