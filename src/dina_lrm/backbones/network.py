"""A pipeline's network in our words: what its config says, and what stands where its output layers were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

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
