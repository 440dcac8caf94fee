"""FLUX.1 dev and schnell: `FluxTransformer2DModel`, two-stream blocks, then single-stream ones.

The network is given `timestep = sigma` and multiplies by 1000 itself, and the guidance too. Taps count the two-stream
blocks first, then the single-stream ones.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.network import (
    JOINT_ATTENTION,
    TRAIN_TIMESTEPS,
    NetworkFacts,
    NoNorm,
    NoProjection,
    set_even_levels,
    unpacked,
)
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.tape import Reading, output_as, streams_as
from dina_lrm.types import Conditioning, NoisedState

GUIDANCE = 3.5  # what dev was distilled around, and what the authors read it with
PATCH = 2


class FluxBackbone(PipelineBackbone):
    """The first blocks of a `FluxTransformer2DModel`.

    `prompt_embeds` are T5's states, padding included and attended to; `pooled_prompt_embeds` are CLIP-L's.
    """

    pipeline_class = FluxPipeline
    network_class = FluxTransformer2DModel
    long_tokenizer = "tokenizer_2"
    default_adapter_targets = JOINT_ATTENTION
    default_image_taps = (8, 12, 16, 19)
    default_text_taps = (8, 12, 16, 19)

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        width = sizes.num_attention_heads * sizes.attention_head_dim
        return NetworkFacts(
            width=width,
            temb_width=width,
            num_blocks=sizes.num_layers + sizes.num_single_layers,
            latent_channels=sizes.in_channels // PATCH**2,
            prompt_width=sizes.joint_attention_dim,
            pooled_width=sizes.pooled_projection_dim,
            probe="x_embedder.weight",
            latent_multiple=PATCH,
        )

    @classmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        single = max(0, config.depth - len(network.transformer_blocks))
        network.transformer_blocks = nn.ModuleList(network.transformer_blocks[: config.depth])
        network.single_transformer_blocks = nn.ModuleList(network.single_transformer_blocks[:single])
        network.norm_out = NoNorm()
        network.proj_out = NoProjection(network.config.patch_size**2 * network.out_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        net: Any = self.network
        return [*net.transformer_blocks, *net.single_transformer_blocks]

    def readings(self) -> list[Reading]:
        net: Any = self.network
        blocks = self.blocks
        taps = sorted({*self.config.image_taps, *self.config.text_taps} - {0})
        return [
            Reading(net.x_embedder, output_as("image.0")),
            Reading(net.context_embedder, output_as("text.0")),
            Reading(net.time_text_embed, output_as("temb")),
            *(Reading(blocks[tap - 1], streams_as(tap, image=1, text=0)) for tap in taps),
        ]

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        latents, embeds = state.noised_latents, conditioning.prompt_embeds
        batch, channels, height, width = latents.shape
        rows, columns = height // PATCH, width // PATCH
        return self.network(
            hidden_states=FluxPipeline._pack_latents(latents, batch, channels, height, width),
            timestep=(state.sigma * TRAIN_TIMESTEPS).to(latents.dtype) / TRAIN_TIMESTEPS,
            guidance=torch.full_like(state.sigma, GUIDANCE) if self._sizes.guidance_embeds else None,
            pooled_projections=conditioning.pooled_prompt_embeds,
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(batch, rows, columns, embeds.device, embeds.dtype),
            return_dict=False,
        )

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        return unpacked(output[0], state.noised_latents.shape)

    def set_levels(self, scheduler: Any, num_steps: int, settings: dict[str, Any]) -> None:
        set_even_levels(scheduler, num_steps, settings)

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt=prompts, prompt_2=None, device=pipeline.text_encoder_2.device, max_sequence_length=length
        )
        return Conditioning(embeds, pooled)
