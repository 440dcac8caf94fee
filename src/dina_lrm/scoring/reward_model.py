"""The public face: a reward model that is asked for scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dina_lrm.checkpoint import LoadedModel, ModelConfig, load_any, save_model
from dina_lrm.errors import ShapeError, ValueRangeError, WorkError
from dina_lrm.images import group_by_size
from dina_lrm.noise import Fusion, NoiseEnsemble
from dina_lrm.preference import Calibration, Likelihood
from dina_lrm.scoring.chunks import in_chunks
from dina_lrm.types import Comparison, Conditioning, Features, NoisedState, Ranking, Reward, check_finite

Images = Sequence[Image.Image] | Tensor
Z_95 = 1.959964
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
        self._schedule: Tensor | None = None

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
        draws: int = 1,
        fusion: Fusion = "mean",
        seed: int | Sequence[int] = 0,
        noise: Tensor | None = None,
        max_batch_size: int | None = None,
        memory_budget: int | None = None,
    ) -> Reward:
        """Score images or latents under prompts.

        Differentiable in `latents` where gradients are enabled. One prompt serves any number of images, whose sizes may
        differ; only those of one size meet the same noise.

        Args:
            prompts: one, or one a sample; or give `conditioning`.
            conditioning: encoded prompts; or give `prompts`.
            images: pictures or pixels `[b 3 y x]`; or give `latents`.
            latents: clean latents `[b c h w]`; or give `images`.
            sigmas: noise levels, each in [0, 1].
            draws: noise tensors a level.
            fusion: "mean" averages utilities over levels and draws; "tokens" is the paper's ensemble, one head pass over
                the levels' joined tokens.
            seed: of the noise; one for all, or one a sample.
            noise: `[b c h w]`, used at every level instead of seeded noise; `draws` must then be 1.
            max_batch_size: most states (samples x levels x draws) in one forward pass; None takes as many as there are
                samples, and never less than 4. Out of memory halves it and goes on.
            memory_budget: bytes of activations that a forward pass may take, instead of max_batch_size.

        Raises:
            ShapeError: counts or shapes do not fit together.
            ValueRangeError: sigma outside [0, 1], a negative seed, values that are not finite.
        """
        if max_batch_size is not None and (max_batch_size < 1 or memory_budget is not None):
            raise ValueRangeError(
                f"max_batch_size must be 1 or more and stand without memory_budget, got {max_batch_size} and {memory_budget}"
            )
        ensemble = NoiseEnsemble(tuple(float(s) for s in sigmas), draws, fusion)
        if (images is None) == (latents is None):
            raise ShapeError("give either images or latents, and not both")
        if images is not None and not isinstance(images, Tensor):
            sizes = self._by_size(images)
            if len(sizes) > 1:
                given = self._conditioning(prompts, conditioning, len(images))
                return self._score_sizes(sizes, given, ensemble, seed, noise, max_batch_size, memory_budget)
            images = sizes[0][1]
        clean = self._encoded(images, max_batch_size) if images is not None else latents
        assert clean is not None
        if clean.ndim < 4 or not len(clean):
            raise ShapeError(f"latents must be [b c h w] with one sample or more, got {list(clean.shape)}")
        check_finite("latents", clean)
        # Float32: half precision would round sigma, alpha and noise apart from the level that the network is told.
        clean = clean.to(self.device).float()
        if noise is not None:
            check_finite("noise", noise)
        given = self._conditioning(prompts, conditioning, len(clean))
        if noise is None:
            noises = ensemble.noise(clean, seed)
        elif noise.shape != clean.shape or draws != 1:
            raise ShapeError(
                f"noise must have the shape of latents {list(clean.shape)} with draws=1, "
                f"got {list(noise.shape)} with draws={draws}"
            )
        else:
            noises = noise.to(clean).unsqueeze(0)
        states = [[self._state(clean, one, sigma) for sigma in self._levels(ensemble.sigmas)] for one in noises]
        recorded = None if noise is not None else seed if isinstance(seed, int) else tuple(seed)
        size = max_batch_size or self._states_at_once(clean, given, memory_budget)
        return self._reward(states, given, fusion, recorded, size)

    def score_state(self, state: NoisedState, conditioning: Conditioning) -> Reward:
        """Score a state that is noised already, such as one inside a sampler: nothing is added to it.

        Raises:
            ShapeError: counts or shapes do not fit together.
            ValueRangeError: sigma outside [0, 1], or latents that are not finite.
        """
        if not len(state):
            raise ShapeError("a state to be scored must hold one sample or more, got none")
        check_finite("noised_latents", state.noised_latents)
        state = state.to(self.device)
        utility = self.network(state, self._conditioning(None, conditioning, len(state)))
        _require_finite(utility)
        spread = self.likelihood.variance(state.sigma.float()).sqrt()
        sigmas = state.sigma[:1] if bool((state.sigma == state.sigma[0]).all()) else state.sigma
        return Reward(self.calibration(utility), utility, spread, spread, utility.unsqueeze(1), sigmas, None)

    def compare(
        self,
        *,
        prompt: str,
        a: Image.Image | Tensor,
        b: Image.Image | Tensor,
        sigmas: Sequence[float] = (0.4,),
        draws: int = 4,
        seed: int = 0,
    ) -> Comparison:
        """Probability that a is preferred to b, by the model's law of choice.

        Both meet the same noise where their sizes agree; where they do not, the interval is the wider for it, and
        resizing one to the other is better. The probability is that of the mean margin under the mean variance of the levels; its
        interval carries the margin's 95 % interval over draws through the law.

        Args:
            prompt: of both.
            a: picture, pixels `[3 y x]` in 0..1, or latents `[c h w]`.
            b: the other, in the same form.
            sigmas: noise levels.
            draws: noise tensors a level; 2 or more for an interval from measurement.
            seed: of the noise.
        """
        images: Images | None = None
        latents: Tensor | None = None
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            images = [a, b]
        elif not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.ndim < 3:
            raise ShapeError("a and b must both be pictures, or tensors [c h w] of one shape")
        elif len(a) == 3:
            images = torch.stack([a, b])
        else:
            latents = torch.stack([a, b])
        with torch.no_grad():
            scored = self.score(prompts=[prompt], images=images, latents=latents, sigmas=sigmas, draws=draws, seed=seed)
        margins = (scored.draws[0] - scored.draws[1]).double()
        mean = margins.mean()
        if draws > 1:
            by_level = margins.view(draws, len(sigmas))
            error = (by_level.var(dim=0).sum() / draws).sqrt() / len(sigmas)
        else:
            error = (2 * self.likelihood.variance(scored.sigmas.double()).sum()).sqrt() / len(sigmas)
        points = torch.stack([mean, mean - Z_95 * error, mean + Z_95 * error])
        probability, low, high = self.probability(points, scored.sigmas).tolist()
        reward_a, reward_b = scored.reward.tolist()
        return Comparison(probability, (low, high), mean.item(), reward_a, reward_b)

    def probability(self, margin: Tensor, sigmas: Tensor) -> Tensor:
        """P(a preferred) for utility margins `[n]`: the law at the level whose variance is the mean over `sigmas`."""
        level = sigmas.double().square().mean().sqrt().expand(margin.shape).to(margin)
        return self.likelihood.choice().log_prob(margin, torch.zeros_like(margin), level).exp()

    def rank(
        self,
        *,
        prompt: str,
        images: Images | None = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] = (0.4,),
        draws: int = 1,
        fusion: Fusion = "mean",
        seed: int = 0,
    ) -> Ranking:
        """Order candidates for one prompt, best first; arguments as in `score`. Those of one size meet the same noise."""
        with torch.no_grad():
            reward = self.score(
                prompts=[prompt], images=images, latents=latents, sigmas=sigmas, draws=draws, fusion=fusion, seed=seed
            )
        return Ranking(tuple(reward.reward.argsort(descending=True, stable=True).tolist()), reward)

    def _by_size(self, images: Sequence[Image.Image]) -> list[tuple[list[int], Tensor]]:
        backbone = self.network.backbone
        return group_by_size(images, backbone.native_size, backbone.image_multiple)

    def _score_sizes(
        self,
        sizes: list[tuple[list[int], Tensor]],
        conditioning: Conditioning,
        ensemble: NoiseEnsemble,
        seed: int | Sequence[int],
        noise: Tensor | None,
        max_batch_size: int | None,
        memory_budget: int | None,
    ) -> Reward:
        """Score pictures of several sizes, one size after another, and put the answers in the order asked."""
        count = len(conditioning)
        if noise is not None:
            raise ShapeError(f"noise [b c h w] fits pictures of one size, got {len(sizes)} sizes; give a seed instead")
        if not isinstance(seed, int) and len(seed) != count:
            raise ShapeError(f"{count} samples need one seed or {count}, got {len(seed)}")
        parts = [
            self.score(
                conditioning=conditioning[torch.tensor(places, device=self.device)],
                images=pixels,
                sigmas=ensemble.sigmas,
                draws=ensemble.draws,
                fusion=ensemble.fusion,
                seed=seed if isinstance(seed, int) else [seed[place] for place in places],
                max_batch_size=max_batch_size,
                memory_budget=memory_budget,
            )
            for places, pixels in sizes
        ]
        order = torch.tensor([place for places, _ in sizes for place in places], device=self.device).argsort()
        by_sample = ("reward", "utility", "utility_std", "standard_error", "draws")
        joined = {name: torch.cat([getattr(part, name) for part in parts])[order] for name in by_sample}
        return replace(parts[0], **joined, seed=seed if isinstance(seed, int) else tuple(seed))

    def _conditioning(
        self, prompts: Sequence[str] | None, conditioning: Conditioning | None, count: int
    ) -> Conditioning:
        if (prompts is None) == (conditioning is None):
            raise ShapeError("give either prompts or conditioning, and not both")
        given = self.encode_prompts(prompts) if prompts is not None else conditioning
        assert given is not None
        if len(given) not in (1, count):
            raise ShapeError(f"{count} samples need 1 or {count} prompts, got {len(given)}")
        check_finite("prompt_embeds", given.prompt_embeds)
        if given.pooled_prompt_embeds is not None:
            check_finite("pooled_prompt_embeds", given.pooled_prompt_embeds)
        given = given.to(self.device)
        return given if len(given) == count else given.repeat(count)

    def _states_at_once(self, clean: Tensor, conditioning: Conditioning, memory_budget: int | None) -> int:
        if memory_budget is None:
            return max(len(clean), FEWEST_STATES)
        length = conditioning.prompt_embeds.shape[1]
        needed = self.network.backbone.activation_bytes(clean.shape[1:], length, clean.requires_grad)
        if needed > memory_budget:
            raise ValueRangeError(
                f"one state of latents {list(clean.shape[1:])} takes {needed} bytes of activations, memory_budget is "
                f"{memory_budget}; give more, or smaller latents"
            )
        return memory_budget // needed

    def _encoded(self, pixels: Tensor, max_batch_size: int | None) -> Tensor:
        size = max_batch_size or FEWEST_STATES
        return in_chunks(
            len(pixels), size, lambda part: self.encode_images(pixels[part]), lambda parts: torch.cat(list(parts))
        )

    def _levels(self, sigmas: Sequence[float]) -> list[float]:
        if not self.config.scoring.snap_to_schedule:
            return list(sigmas)
        if self._schedule is None:
            self._schedule = self.network.backbone.schedule_sigmas()
        table = self._schedule
        return [float(table[(table - sigma).abs().argmin()]) for sigma in sigmas]

    def _state(self, clean: Tensor, noise: Tensor, sigma: float) -> NoisedState:
        level = torch.full((len(clean),), sigma, device=clean.device)
        if not self.config.scoring.add_noise:
            return NoisedState(clean, level)
        return self.network.backbone.process.add_noise(clean, noise, level)

    def _reward(
        self,
        states: list[list[NoisedState]],
        conditioning: Conditioning,
        fusion: Fusion,
        seed: int | tuple[int, ...] | None,
        max_batch_size: int,
    ) -> Reward:
        """Read `states[draw][level]` and sum up."""
        levels = [float(state.sigma[0]) for state in states[0]]
        utilities = self._utilities(states, conditioning, fusion, max_batch_size)
        _require_finite(utilities)
        mean = utilities.mean(dim=1)
        level_variance = self.likelihood.variance(torch.tensor(levels, device=mean.device))
        draws = len(states)
        # What one draw measures: a utility a level with "mean", one joined utility with "tokens".
        columns = 1 if fusion == "tokens" else len(levels)
        detached = utilities.detach()
        if draws > 1:
            by_level = detached.view(len(mean), draws, columns)
            standard_error = (by_level.var(dim=1).sum(dim=1) / draws).sqrt() / columns
        else:
            standard_error = (level_variance.sum().sqrt() / len(levels)).expand_as(mean).clone()
        law_spread = level_variance.mean().sqrt()
        spread = detached.std(dim=1) if utilities.shape[1] > 1 else law_spread.expand_as(mean).clone()
        shown = levels if fusion == "tokens" else levels * draws
        return Reward(self.calibration(mean), mean, spread, standard_error, utilities, torch.tensor(shown), seed)

    def _utilities(
        self, states: list[list[NoisedState]], conditioning: Conditioning, fusion: Fusion, size: int
    ) -> Tensor:
        """Utility `[b s]` of `states[draw][level]`; draws and levels share forward passes of at most `size` states."""
        count, levels = len(conditioning), len(states[0])
        every = NoisedState.cat([state for draw in states for state in draw])
        learned = any(parameter.requires_grad for parameter in self.network.parameters())
        graph = torch.is_grad_enabled() and (every.noised_latents.requires_grad or learned)
        if fusion == "mean":
            rows = torch.arange(len(every), device=self.device)

            def utility(part: slice) -> Tensor:
                return self.network(every[part], conditioning[rows[part] % count])

            return in_chunks(len(every), size, utility, lambda parts: torch.cat(list(parts)), graph).view(-1, count).T

        def joined(units: Tensor) -> Tensor:
            # A unit is one sample of one draw; its levels' states stand `count` rows apart.
            first = units // count * levels * count + units % count
            rows = torch.cat([first + level * count for level in range(levels)])

            def features(part: slice) -> Features:
                return self.network.features(every[rows[part]], conditioning[rows[part] % count])

            seen = in_chunks(len(rows), size, features, Features.cat, graph)
            return self.network.read_joined([seen[i : i + len(units)] for i in range(0, len(rows), len(units))])

        units = torch.arange(len(states) * count, device=self.device)
        read = [joined(part) for part in torch.split(units, max(1, size // levels))]
        return torch.cat(read).view(-1, count).T


def _require_finite(utility: Tensor) -> None:
    """A number that is none must not be ranked."""
    if not torch.isfinite(utility).all():
        raise WorkError(
            f"the model gave {int((~torch.isfinite(utility)).sum())} utilities that are not finite; float16 overflows in some "
            "networks: load the base in bfloat16 or float32"
        )
