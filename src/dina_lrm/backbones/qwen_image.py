"""Qwen-Image: `QwenImageTransformer2DModel`, two-stream blocks.

The network is given `timestep = sigma`; its embedder has the factor of 1000 built in. Text padding is masked.
"""

from __future__ import annotations

from typing import Any

from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
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

PATCH = 2


class QwenImageBackbone(PipelineBackbone):
    """The first blocks of a `QwenImageTransformer2DModel`.

    `prompt_embeds` are Qwen2.5-VL's states after the system prompt, zero-padded to the longest, with `prompt_mask`.
    """

    pipeline_class = QwenImagePipeline
    network_class = QwenImageTransformer2DModel
    default_adapter_targets = JOINT_ATTENTION
    default_image_taps = (10, 15, 20)
    default_text_taps = (10, 15, 20)

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        width = sizes.num_attention_heads * sizes.attention_head_dim
        return NetworkFacts(
            width=width,
            temb_width=width,
            num_blocks=sizes.num_layers,
            latent_channels=sizes.in_channels // PATCH**2,
            prompt_width=sizes.joint_attention_dim,
            pooled_width=None,
            probe="img_in.weight",
            latent_multiple=PATCH,
        )

    @classmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        network.transformer_blocks = nn.ModuleList(network.transformer_blocks[: config.depth])
        network.norm_out = NoNorm()
        network.proj_out = NoProjection(network.config.patch_size**2 * network.out_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.network.get_submodule("transformer_blocks").children())

    def readings(self) -> list[Reading]:
        net: Any = self.network
        taps = sorted({*self.config.image_taps, *self.config.text_taps} - {0})
        return [
            Reading(net.img_in, output_as("image.0")),
            Reading(net.txt_in, output_as("text.0")),
            Reading(net.time_text_embed, output_as("temb")),
            *(Reading(net.transformer_blocks[tap - 1], streams_as(tap, image=1, text=0)) for tap in taps),
        ]

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        latents, mask = state.noised_latents, conditioning.prompt_mask
        batch, channels, height, width = latents.shape
        return self.network(
            hidden_states=QwenImagePipeline._pack_latents(latents, batch, channels, height, width),
            timestep=(state.sigma * TRAIN_TIMESTEPS).to(latents.dtype) / TRAIN_TIMESTEPS,
            guidance=None,
            encoder_hidden_states=conditioning.prompt_embeds,
            encoder_hidden_states_mask=None if mask is None or bool(mask.all()) else mask,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * batch,
            return_dict=False,
        )

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        return unpacked(output[0], state.noised_latents.shape)

    def set_levels(self, scheduler: Any, num_steps: int, settings: dict[str, Any]) -> None:
        set_even_levels(scheduler, num_steps, settings)

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        embeds, mask = pipeline.encode_prompt(
            prompt=prompts, device=pipeline.text_encoder.device, max_sequence_length=length
        )
        return Conditioning(embeds, None, embeds.new_ones(embeds.shape[:2]).bool() if mask is None else mask.bool())

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        return pipeline.tokenizer, length  # the system prompt is read before and not counted

    def to_vae(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(2)

    def from_vae(self, tensor: Tensor) -> Tensor:
        return tensor.squeeze(2)
