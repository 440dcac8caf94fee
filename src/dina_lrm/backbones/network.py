"""A pipeline's network in our words: what its config says, and what stands where its output layers were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError
from dina_lrm.types import Conditioning, NoisedState, check_sigma

TRAIN_TIMESTEPS = 1000
# Projections of a block whose image and text streams attend to each other, as diffusers names them.
JOINT_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class NetworkFacts:
    """What a network's config says, in one vocabulary.

    Attributes:
        width: of its tokens.
        temb_width: of its time embedding.
        num_blocks: that a tap can name.
        latent_channels: of the latents as users hold them, not as the network packs them.
        latent_multiple: latent sides must be multiples of this.
        max_latent_side: the longest, if positions end somewhere.
        native_latent_side: of the square latents that it was made for.
        prompt_width: of prompt_embeds.
        pooled_width: of pooled_prompt_embeds; None if it takes none.
        probe: a weight whose first values tell one base from another.
    """

    width: int
    temb_width: int
    num_blocks: int
    latent_channels: int
    prompt_width: int
    pooled_width: int | None
    probe: str
    latent_multiple: int = 2
    max_latent_side: int | None = None
    native_latent_side: int = 128

    def check(self, state: NoisedState, conditioning: Conditioning, rank: int) -> None:
        """Refuse latents and embeddings that are not this network's.

        Args:
            state: noised latents and their levels.
            conditioning: of each.
            rank: axes of the latents, the batch's among them.

        Raises:
            ShapeError: naming what was expected.
            ValueRangeError: sigma outside [0, 1].
        """
        shape = list(state.noised_latents.shape)
        axes = "h w" if rank == 4 else "f h w"
        if len(shape) != rank or shape[1] != self.latent_channels:
            raise ShapeError(f"latents must be [b {self.latent_channels} {axes}] for this backbone, got {shape}")
        multiple, limit = self.latent_multiple, self.max_latent_side
        if any(side % multiple for side in shape[-2:]) or (limit is not None and max(shape[-2:]) > limit):
            up_to = "" if limit is None else f" up to {limit}"
            raise ShapeError(f"latent sides must be multiples of {multiple}{up_to}, got {shape[-2]} x {shape[-1]}")
        if len(conditioning) != len(state):
            raise ShapeError(f"{len(state)} states need as many prompts, got {len(conditioning)}")
        if conditioning.prompt_embeds.shape[-1] != self.prompt_width:
            raise ShapeError(
                f"prompt_embeds must have width {self.prompt_width} for this backbone, "
                f"got {list(conditioning.prompt_embeds.shape)}"
            )
        pooled = conditioning.pooled_prompt_embeds
        if self.pooled_width is not None and (pooled is None or pooled.shape[-1] != self.pooled_width):
            told = "none" if pooled is None else list(pooled.shape)
            raise ShapeError(f"pooled_prompt_embeds must have width {self.pooled_width} for this backbone, got {told}")
        check_sigma(state.sigma)


class NoNorm(nn.Module):
    """In place of an output norm, with whatever it was conditioned on."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class NoProjection(nn.Module):
    """In place of an output projection: zeros of the shape that the library folds back into latents."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.out_features)


def unpacked(tokens: Tensor, shape: Sequence[int], patch: int = 2) -> Tensor:
    """Tokens `[b n patch^2 c]` of a network that packs its latents, as `[b c h w]` of the given shape."""
    batch, channels, height, width = shape
    grid = tokens.view(batch, height // patch, width // patch, channels, patch, patch)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def size_shift(config: Any, latents_shape: Sequence[int], patch: int) -> float:
    """How far a scheduler shifts its levels for a picture of this size: a line through two lengths of the token sequence.

    Args:
        config: of the scheduler.
        latents_shape: `(c, h, w)`.
        patch: side of what the network takes as one token.
    """
    tokens = latents_shape[-1] * latents_shape[-2] // patch**2
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(least + (most - least) * (tokens - low) / (high - low))


def set_even_levels(scheduler: Any, num_steps: int, settings: dict[str, Any]) -> None:
    """From 1 to `1 / num_steps` in even steps, before any shift: FLUX's, Qwen-Image's and Z-Image's."""
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps), **settings)


def sampler_levels(
    scheduler: Any, set_levels: Callable[..., None], num_steps: int, latents_shape: Sequence[int], patch: int
) -> Tensor:
    """The grid of a flow-matching scheduler, `[num_steps + 1]`.

    Args:
        scheduler: it is set.
        set_levels: how its pipeline sets it.
        num_steps: network evaluations.
        latents_shape: of one sample `(c, h, w)`.
        patch: side of what the network takes as one token.

    Raises:
        ConfigError: a scheduler of another kind.
        ValueRangeError: no steps.
    """
    if num_steps < 1:
        raise ValueRangeError(f"num_steps must be 1 or more, got {num_steps}")
    if not any(kind.__name__.startswith("FlowMatchEuler") for kind in type(scheduler).__mro__):
        raise ConfigError(
            f"the levels of {type(scheduler).__name__} are not known here; give the pipeline a FlowMatchEulerDiscreteScheduler"
        )
    settings: dict[str, Any] = {}
    if scheduler.config.use_dynamic_shifting:
        settings["mu"] = size_shift(scheduler.config, latents_shape, patch)
    set_levels(scheduler, num_steps, settings)
    sigmas: Tensor = scheduler.sigmas
    return sigmas.float().cpu()
