"""Stable Diffusion 3 and 3.5 (Medium, Medium 3.5 with dual attention, Large): `SD3Transformer2DModel`.

`timestep = 1000 sigma`; `temb` mixes time and pooled text, as SD3's `time_text_embed` does.
"""

from __future__ import annotations

from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.network import JOINT_ATTENTION, TRAIN_TIMESTEPS, NetworkFacts, NoNorm, NoProjection
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.tape import Reading, output_as, streams_as
from dina_lrm.errors import ConfigError, InputError
from dina_lrm.types import Conditioning, NoisedState


class Sd3Backbone(PipelineBackbone):
    """The first blocks of an `SD3Transformer2DModel`; image and text are two streams through every block.

    `prompt_embeds` are CLIP-L and CLIP-G states (77 tokens, padded to T5's width), then T5's (`max_sequence_length`).
    """

    pipeline_class = StableDiffusion3Pipeline
    network_class = SD3Transformer2DModel
    optional_encoders = ("text_encoder_3",)
    long_tokenizer = "tokenizer_3"
    default_adapter_targets = JOINT_ATTENTION
    default_image_taps = (4, 8, 12)
    default_text_taps = (4, 8, 12)

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        width = sizes.num_attention_heads * sizes.attention_head_dim
        return NetworkFacts(
            width=width,
            temb_width=width,
            num_blocks=sizes.num_layers,
            latent_channels=sizes.in_channels,
            prompt_width=sizes.joint_attention_dim,
            pooled_width=sizes.pooled_projection_dim,
            probe="pos_embed.proj.weight",
            latent_multiple=sizes.patch_size,
            max_latent_side=sizes.pos_embed_max_size * sizes.patch_size,
            native_latent_side=sizes.sample_size,
        )

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        super().check_taps(config, sizes)
        if config.text_taps[-1] == sizes.num_layers:
            raise ConfigError(
                f"text tap {sizes.num_layers} is the last block, which returns no text tokens; "
                f"use taps up to {sizes.num_layers - 1}"
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
            Reading(net.pos_embed, output_as("image.0")),
            Reading(net.context_embedder, output_as("text.0")),
            Reading(net.time_text_embed, output_as("temb")),
            *(Reading(net.transformer_blocks[tap - 1], streams_as(tap, image=1, text=0)) for tap in taps),
        ]

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        return self.network(
            hidden_states=state.noised_latents,
            timestep=state.sigma * TRAIN_TIMESTEPS,
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled_prompt_embeds,
            return_dict=False,
        )

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        velocity: Tensor = output[0]
        return velocity

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        if pipeline.text_encoder_3 is None and length > 1 and not isinstance(self._source, str):
            raise InputError(
                f"the pipeline given as base ({self.base}) was loaded without T5, and {length} of its tokens are to be read: "
                "scores would be others; load it with text_encoder_3, or give conditioning that was encoded with it"
            )
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        return Conditioning(embeds, pooled)

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        # A length of 1 is T5's end token alone: then, as without T5, CLIP reads furthest.
        if pipeline.text_encoder_3 is None or length <= 1:
            return pipeline.tokenizer, pipeline.tokenizer_max_length - 2
        return super().reader(pipeline, length)

    def prepare(self, pipeline: Any) -> None:
        # Some tokenizers were saved without their length; CLIP's positions then set it.
        positions = pipeline.text_encoder.config.max_position_embeddings
        pipeline.tokenizer_max_length = min(pipeline.tokenizer_max_length, positions)
