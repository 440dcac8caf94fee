"""Z-Image: `ZImageTransformer2DModel`, image and caption refined apart, then one sequence through every layer.

The network is given `t = 1 - sigma` (1 is clean) and multiplies by 1000 itself. Taps are layers of the joint sequence;
tap 0 is what the refiners give.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.network import TRAIN_TIMESTEPS, NetworkFacts, NoProjection, set_even_levels
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.tape import Reading, Tape, output_as
from dina_lrm.types import Conditioning, Features, NoisedState

PATCH = 2
SEQUENCE_MULTIPLE = 32  # image and caption are each padded to a multiple of it with learned tokens
TEMB_WIDTH = 256


class ZImageBackbone(PipelineBackbone):
    """The first layers of a `ZImageTransformer2DModel`, with all its refiners.

    `prompt_embeds` are Qwen3's states of the prompt in its chat template (which counts against the length), with
    `prompt_mask`. `temb` is the 256-wide time embedding: the network has no other.
    """

    pipeline_class = ZImagePipeline
    network_class = ZImageTransformer2DModel
    default_adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    default_image_taps = (4, 8, 12, 16)
    default_text_taps = (4, 8, 12, 16)

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        return NetworkFacts(
            width=sizes.dim,
            temb_width=min(sizes.dim, TEMB_WIDTH),
            num_blocks=sizes.n_layers,
            latent_channels=sizes.in_channels,
            prompt_width=sizes.cap_feat_dim,
            pooled_width=None,
            probe=f"all_x_embedder.{PATCH}-1.weight",
            latent_multiple=PATCH,
            max_latent_side=PATCH * min(sizes.axes_lens[1:]),
        )

    @classmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        network.layers = nn.ModuleList(network.layers[: config.depth])
        network.all_final_layer = nn.ModuleDict({f"{PATCH}-1": NoProjection(PATCH**2 * network.out_channels)})

    @property
    def blocks(self) -> list[nn.Module]:
        net: Any = self.network
        return [*net.noise_refiner, *net.context_refiner, *net.layers]

    def readings(self) -> list[Reading]:
        net: Any = self.network
        taps = sorted({*self.config.image_taps, *self.config.text_taps} - {0})
        return [
            Reading(net.noise_refiner[-1], output_as("image.0")),
            Reading(net.context_refiner[-1], output_as("text.0")),
            Reading(net.t_embedder, output_as("temb")),
            *(Reading(net.layers[tap - 1], output_as(f"joint.{tap}")) for tap in taps),
        ]

    def read_tape(self, tape: Tape, state: NoisedState, conditioning: Conditioning) -> Features:
        height, width = state.noised_latents.shape[-2:]
        num_image = height * width // PATCH**2
        start = math.ceil(num_image / SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE
        image = {tap: tape["image.0"] if tap == 0 else tape[f"joint.{tap}"] for tap in self.config.image_taps}
        text = {tap: tape["text.0"] if tap == 0 else tape[f"joint.{tap}"][:, start:] for tap in self.config.text_taps}
        length = next(iter(text.values())).shape[1]
        places = torch.arange(length, device=state.sigma.device)
        return Features(
            tuple(tokens[:, :num_image] for tokens in image.values()),
            tuple(text.values()),
            tape["temb"],
            places < _lengths(conditioning).unsqueeze(1),
        )

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        captions = list(conditioning.prompt_embeds)
        if conditioning.prompt_mask is not None:
            captions = [embeds[mask] for embeds, mask in zip(captions, conditioning.prompt_mask, strict=True)]
        return self.network(
            list(state.noised_latents.unsqueeze(2)),
            (TRAIN_TIMESTEPS - state.sigma * TRAIN_TIMESTEPS) / TRAIN_TIMESTEPS,
            captions,
            return_dict=False,
        )

    def flow(self, output: Any, state: NoisedState) -> Tensor:
        # It looks from noise to picture: its time runs the other way.
        return -torch.stack(list(output[0])).squeeze(2)

    def set_levels(self, scheduler: Any, num_steps: int, settings: dict[str, Any]) -> None:
        set_even_levels(scheduler, num_steps, settings)

    def encode(self, pipeline: Any, prompts: list[str], length: int) -> Conditioning:
        captions, _ = pipeline.encode_prompt(
            prompts,
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        masks = [caption.new_ones(1, len(caption)).bool() for caption in captions]
        return Conditioning.cat(
            [Conditioning(one[None], None, mask) for one, mask in zip(captions, masks, strict=True)]
        )

    def reader(self, pipeline: Any, length: int) -> tuple[Any, int]:
        mark = "(prompt)"
        template = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        before = template.partition(mark)[0]
        return pipeline.tokenizer, length - len(pipeline.tokenizer(before).input_ids)


def _lengths(conditioning: Conditioning) -> Tensor:
    """True tokens of each caption `[b]`."""
    mask = conditioning.prompt_mask
    if mask is None:
        batch, length = conditioning.prompt_embeds.shape[:2]
        return torch.full((batch,), length, device=conditioning.prompt_embeds.device)
    return mask.sum(dim=1)
