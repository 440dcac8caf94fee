"""Wan 2.1 text-to-video: `WanTransformer3DModel` on clips, latents `[b 16 f h w]`.

The network is given `timestep = 1000 sigma`. Text enters every block by cross-attention and is not changed by it: the
one text tap is 0, the projected prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.network import TRAIN_TIMESTEPS, NetworkFacts, NoNorm, NoProjection
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.tape import Reading, output_as
from dina_lrm.errors import BaseMismatchError, ConfigError, ShapeError
from dina_lrm.types import Conditioning, NoisedState

FRAMES_A_LATENT = 4


class WanBackbone(PipelineBackbone):
    """The first blocks of a `WanTransformer3DModel`.

    `prompt_embeds` are UMT5's states, zero-padded to the length; the zeros are attended to, so the length matters.
    """

    pipeline_class = WanPipeline
    network_class = WanTransformer3DModel
    latent_axes = 5
    default_adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    default_image_taps = (5, 10, 15)
    default_text_taps = (0,)
    default_max_sequence_length = 512  # its padding is attended to, and it was trained with so much of it

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        width = sizes.num_attention_heads * sizes.attention_head_dim
        return NetworkFacts(
            width=width,
            temb_width=width,
            num_blocks=sizes.num_layers,
            latent_channels=sizes.in_channels,
            prompt_width=sizes.text_dim,
            pooled_width=None,
            probe="patch_embedding.weight",
            latent_multiple=sizes.patch_size[-1],
            native_latent_side=60,
        )

    @classmethod
    def check_pipeline(cls, settings: Mapping[str, Any]) -> None:
        if settings.get("boundary_ratio") is not None:
            raise BaseMismatchError(
                f"this Wan pipeline changes its network at sigma {settings['boundary_ratio']}, and a reward reads one "
                "network at all levels; use Wan 2.1, whose one network knows them all"
            )

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        super().check_taps(config, sizes)
        if config.text_taps != (0,):
            raise ConfigError(f"text stands still in Wan: text_taps must be (0,), got {config.text_taps}")

    @classmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        network.blocks = nn.ModuleList(network.blocks[: config.depth])
        network.norm_out = NoNorm()
        out_channels = network.config.out_channels or network.config.in_channels
        network.proj_out = NoProjection(math.prod(network.config.patch_size) * out_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.network.get_submodule("blocks").children())

    def readings(self) -> list[Reading]:
        net: Any = self.network
        return [
            Reading(net.patch_embedding, lambda kwargs, out: {"image.0": out.flatten(2).transpose(1, 2)}),
            Reading(net.condition_embedder, lambda kwargs, out: {"temb": out[0], "text.0": out[2]}),
            *(Reading(net.blocks[tap - 1], output_as(f"image.{tap}")) for tap in self.config.image_taps if tap),
        ]

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        return self.network(
            hidden_states=state.noised_latents,
            timestep=state.sigma * TRAIN_TIMESTEPS,
            encoder_hidden_states=conditioning.prompt_embeds,
            return_dict=False,
        )

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        velocity: Tensor = output[0]
        return velocity

    def schedule_sigmas(self) -> Tensor:
        config = self.scheduler().config
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        steps = torch.linspace(1, 1 / TRAIN_TIMESTEPS, TRAIN_TIMESTEPS, dtype=torch.float64)
        return (shift * steps / (1 + (shift - 1) * steps)).float()

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            device=pipeline.text_encoder.device,
        )
        return Conditioning(embeds)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b 3 f y x]` in 0..1, f = 4 k + 1 frames, to latents `[b 16 k+1 h w]`; a picture `[b 3 y x]` is a clip of one.

        Raises:
            ShapeError: another number of frames, or sides that do not fit.
        """
        clip = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels
        if clip.ndim == 5 and clip.shape[2] % FRAMES_A_LATENT != 1:
            raise ShapeError(f"a clip must have 4 k + 1 frames (1, 5, 9, ...), got {clip.shape[2]}")
        return super().encode_images(clip)
