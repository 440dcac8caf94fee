"""Stable Diffusion XL: `UNet2DConditionModel` with two CLIP text encoders and micro-conditioning on sizes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.unet import UnetBackbone
from dina_lrm.errors import BaseMismatchError
from dina_lrm.types import Conditioning, NoisedState

TIME_IDS = 6


class SdxlBackbone(UnetBackbone):
    """The first blocks of SDXL's UNet: 3 down blocks (taps 1 to 3), mid (4), 3 up blocks (5 to 7).

    `prompt_embeds` are the states of both CLIPs, joined over width; the pooled ones are the second's. The sizes that the
    network is told are those of the picture itself, uncropped, as its pipeline tells them by default.
    """

    pipeline_class = StableDiffusionXLPipeline
    default_image_taps = (2, 4, 5)

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        if sizes.addition_embed_type != "text_time":
            raise BaseMismatchError("this UNet is told no picture sizes, so it is none of SDXL's; its kind may be sd15")
        super().check_taps(config, sizes)

    @classmethod
    def pooled_width(cls, sizes: Any) -> int | None:
        return int(sizes.projection_class_embeddings_input_dim) - TIME_IDS * int(sizes.addition_time_embed_dim)

    def added(self, state: NoisedState, conditioning: Conditioning) -> dict[str, Tensor] | None:
        height, width = (side * self.vae_factor for side in state.noised_latents.shape[-2:])
        embeds = conditioning.prompt_embeds
        told = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=embeds.device)
        assert conditioning.pooled_prompt_embeds is not None
        return {"text_embeds": conditioning.pooled_prompt_embeds, "time_ids": told.repeat(len(state), 1)}

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            device=pipeline.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Conditioning(embeds, pooled)

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        return pipeline.tokenizer, int(pipeline.tokenizer.model_max_length) - 2
