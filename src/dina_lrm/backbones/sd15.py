"""Stable Diffusion 1.x and 2.x: `UNet2DConditionModel` with one CLIP text encoder."""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionPipeline

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.unet import UnetBackbone
from dina_lrm.errors import BaseMismatchError
from dina_lrm.types import Conditioning


class Sd15Backbone(UnetBackbone):
    """The first blocks of Stable Diffusion 1.5's UNet: 4 down blocks (taps 1 to 4), mid (5), 4 up blocks (6 to 9).

    `prompt_embeds` are CLIP-L's states; there are no pooled ones, and the length is CLIP's own, 77.
    """

    pipeline_class = StableDiffusionPipeline
    unused_parts = {**UnetBackbone.unused_parts, "safety_checker": None}
    default_image_taps = (2, 5, 7)

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        if sizes.addition_embed_type is not None:
            raise BaseMismatchError(
                f"this UNet is told more than prompt and time ({sizes.addition_embed_type}), so it is none of Stable "
                "Diffusion 1 or 2; its kind may be sdxl"
            )
        super().check_taps(config, sizes)

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(
            prompts,
            device=pipeline.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Conditioning(embeds)

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        return pipeline.tokenizer, int(pipeline.tokenizer.model_max_length) - 2
