"""Stable Diffusion 3 and 3.5: diffusers' own transformer, cut after the last tap.

The forward pass is never rewritten. Hooks read the tapped blocks while the library's own code runs; where the output
layers were, two stubs stand, so their weights are neither kept nor computed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import LogRecord
from typing import Any

import torch
from diffusers import (
    AutoModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.utils import logging
from torch import Tensor, nn

from dina_lrm.backbones.base import Backbone, BackboneConfig
from dina_lrm.errors import BaseMismatchError, ConfigError, InputError, ShapeError, ValueRangeError
from dina_lrm.noise import RectifiedFlow
from dina_lrm.types import Conditioning, Features, NoisedState, check_sigma

TRAIN_TIMESTEPS = 1000


class _NoNorm(nn.Module):
    """In place of the output norm."""

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        return hidden_states


class _NoProjection(nn.Module):
    """In place of the output projection: zeros of the shape that the library folds back into latents."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.out_features)


@contextmanager
def _cut_is_no_news(length: int) -> Iterator[None]:
    """A single token of T5 asks for none of its words: the library's word on them is kept back, that on CLIP's is not."""
    logger = logging.get_logger(StableDiffusion3Pipeline.__module__)

    def told(record: LogRecord) -> bool:
        return length > 1 or "`max_sequence_length` is set to" not in record.getMessage()

    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)


def cut_transformer(transformer: SD3Transformer2DModel, depth: int) -> SD3Transformer2DModel:
    """A transformer that shares the first `depth` blocks and the embedders; the one given is left as it is."""
    kept = copy.copy(transformer)
    kept._modules = dict(transformer._modules)
    kept.transformer_blocks = nn.ModuleList(list(transformer.transformer_blocks)[:depth])
    kept.norm_out = _NoNorm()
    kept.proj_out = _NoProjection(transformer.config.patch_size**2 * transformer.out_channels)
    return kept


class Sd3Backbone(Backbone):
    """The first blocks of an `SD3Transformer2DModel` with the pipeline's VAE and text encoders.

    `timestep = 1000 sigma`; `temb` mixes time and pooled text, as SD3's `time_text_embed` does.
    """

    default_adapter_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )

    def __init__(
        self,
        config: BackboneConfig,
        transformer: SD3Transformer2DModel,
        base: str | DiffusionPipeline,
        name: str,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        sizes = transformer.config
        blocks = len(transformer.transformer_blocks)
        if config.depth > blocks:
            raise ConfigError(f"taps reach block {config.depth}, but the base has {blocks}; use taps up to {blocks}")
        if config.text_taps[-1] == sizes.num_layers:
            raise ConfigError(
                f"text tap {sizes.num_layers} is the last block, which returns no text tokens; use taps up to {sizes.num_layers - 1}"
            )
        self.config, self.base, self.process = config, name, RectifiedFlow()
        self._sizes: Any = sizes
        self._source, self.revision = base, revision
        self._pipeline: StableDiffusion3Pipeline | None = None
        self._vae: Any = None if isinstance(base, str) else base.vae
        self.network = cut_transformer(transformer, config.depth)
        self.network.requires_grad_(False)
        self.width = self.temb_width = sizes.num_attention_heads * sizes.attention_head_dim
        self.latent_channels = sizes.in_channels
        if config.adapter is not None:
            self.add_adapter(config.adapter)

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        base: str | DiffusionPipeline,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        random_seed: int | None = None,
    ) -> Sd3Backbone:
        """From a pipeline folder, a hub id or a loaded pipeline, which is copied and left as it was.

        Args:
            config: what to keep and to read.
            base: where the pretrained network comes from.
            dtype: of the base weights.
            revision: of the hub repository; text encoders, VAE and scheduler are of the same.
            random_seed: a seed gives the same network with random weights instead: the control of an experiment.

        Raises:
            InputError: nothing that diffusers can load is there.
            BaseMismatchError: a pipeline of another kind.
        """
        if isinstance(base, DiffusionPipeline):
            if not isinstance(base.transformer, SD3Transformer2DModel):
                raise BaseMismatchError(f"an sd3 backbone needs a StableDiffusion3Pipeline, got {type(base).__name__}")
            transformer = copy.deepcopy(cut_transformer(base.transformer, config.depth)).to(dtype)
            name = str(base.config._name_or_path)
        else:
            try:
                transformer = SD3Transformer2DModel.from_pretrained(
                    base, subfolder="transformer", dtype=dtype, revision=revision
                )
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"no Stable Diffusion 3 pipeline could be loaded from base {base!r} ({reason}); "
                    "name its folder or hub id as base"
                ) from error
            name = base
        if random_seed is not None:
            with torch.random.fork_rng():
                torch.manual_seed(random_seed)
                transformer = SD3Transformer2DModel.from_config(transformer.config).to(dtype)
        return cls(config, transformer, base, name, revision)

    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        self._check(state, conditioning)
        dtype = self.dtype
        with self._tape() as tape:
            self.network(
                hidden_states=state.noised_latents.to(dtype),
                timestep=state.sigma * TRAIN_TIMESTEPS,
                encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
                pooled_projections=conditioning.pooled_prompt_embeds.to(dtype),
                return_dict=False,
            )
        return Features(
            tuple(tape["image", tap] for tap in self.config.image_taps),
            tuple(tape["text", tap] for tap in self.config.text_taps),
            tape["temb", 0],
        )

    @contextmanager
    def _tape(self) -> Iterator[dict[tuple[str, int], Tensor]]:
        """Hooks that write embedding outputs as tap 0, block i's outputs as tap i, and `temb`."""
        tape: dict[tuple[str, int], Tensor] = {}

        def single(key: tuple[str, int]) -> Any:
            return lambda module, args, output: tape.__setitem__(key, output)

        def block(tap: int) -> Any:
            return lambda module, args, output: tape.update({("text", tap): output[0], ("image", tap): output[1]})

        net: Any = self.network
        handles = [
            net.pos_embed.register_forward_hook(single(("image", 0))),
            net.context_embedder.register_forward_hook(single(("text", 0))),
            net.time_text_embed.register_forward_hook(single(("temb", 0))),
        ]
        wanted = {*self.config.image_taps, *self.config.text_taps} - {0}
        handles += [net.transformer_blocks[tap - 1].register_forward_hook(block(tap)) for tap in wanted]
        try:
            yield tape
        finally:
            for handle in handles:
                handle.remove()

    def _check(self, state: NoisedState, conditioning: Conditioning) -> None:
        sizes = self._sizes
        if state.noised_latents.ndim != 4 or state.noised_latents.shape[1] != self.latent_channels:
            raise ShapeError(
                f"latents must be [b {self.latent_channels} h w] for this backbone, got {list(state.noised_latents.shape)}"
            )
        height, width = state.noised_latents.shape[-2:]
        limit = sizes.pos_embed_max_size * sizes.patch_size
        if height % sizes.patch_size or width % sizes.patch_size or max(height, width) > limit:
            raise ShapeError(
                f"latent sides must be multiples of {sizes.patch_size} up to {limit}, got {height} x {width}"
            )
        if len(conditioning) != len(state):
            raise ShapeError(f"{len(state)} states need as many prompts, got {len(conditioning)}")
        for name, tensor, size in (
            ("prompt_embeds", conditioning.prompt_embeds, sizes.joint_attention_dim),
            ("pooled_prompt_embeds", conditioning.pooled_prompt_embeds, sizes.pooled_projection_dim),
        ):
            if tensor.shape[-1] != size:
                raise ShapeError(f"{name} must have width {size} for this backbone, got {list(tensor.shape)}")
        check_sigma(state.sigma)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueRangeError(f"prompts must be a list of one or more strings, got {prompts!r}")
        length = self.config.max_sequence_length if max_sequence_length is None else max_sequence_length
        pipeline = self._text_pipeline()
        with torch.no_grad(), _cut_is_no_news(length):
            embeds, _, pooled, _ = pipeline.encode_prompt(
                prompt=list(prompts),
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
        return Conditioning(embeds, pooled)

    def encode_images(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[-1] % 16 or pixels.shape[-2] % 16:
            raise ShapeError(f"pixels must be [b 3 y x] with sides that are multiples of 16, got {list(pixels.shape)}")
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueRangeError(
                f"pixels must lie in 0..1, got {pixels.min().item():g} to {pixels.max().item():g}; divide bytes by 255"
            )
        vae = self._autoencoder()
        with torch.no_grad():
            encoded = vae.encode((pixels * 2 - 1).to(vae.device, vae.dtype))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        vae = self._autoencoder()
        with torch.no_grad():
            raw = (latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).to(vae.device, vae.dtype)
            pixels: Tensor = vae.decode(raw, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1)

    def schedule_sigmas(self) -> Tensor:
        if isinstance(self._source, str):
            scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
                self._source, subfolder="scheduler", revision=self.revision
            )
        else:
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._source.scheduler.config)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def drop_encoders(self) -> None:
        if isinstance(self._source, str):
            self._pipeline = self._vae = None

    def signature(self) -> dict[str, Any]:
        sizes, embed = self._sizes, self.network.get_submodule("pos_embed.proj")
        return {
            "class": "SD3Transformer2DModel",
            "width": self.width,
            "num_layers": sizes.num_layers,
            "latent_channels": self.latent_channels,
            "prompt_embeds_width": sizes.joint_attention_dim,
            "pooled_prompt_embeds_width": sizes.pooled_projection_dim,
            "probe": [round(v, 6) for v in embed.get_parameter("weight").detach().float().flatten()[:8].tolist()],
        }

    @property
    def image_multiple(self) -> int:
        return 8 * int(self._sizes.patch_size)

    @property
    def native_size(self) -> int:
        return 8 * int(self._sizes.sample_size)

    def _text_pipeline(self) -> StableDiffusion3Pipeline:
        if self._pipeline is None:
            if isinstance(self._source, str):
                pipeline = StableDiffusion3Pipeline.from_pretrained(
                    self._source, transformer=self.network, vae=None, dtype=self.dtype, revision=self.revision
                )
                for encoder in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
                    if encoder is not None:
                        encoder.to(self.device)
            else:
                # A wrapper of our own around the caller's encoders: nothing of the caller's is written to.
                pipeline = StableDiffusion3Pipeline(**{**self._source.components, "transformer": self.network})
            # Some tokenizers were saved without their length; CLIP's positions then set it.
            positions = pipeline.text_encoder.config.max_position_embeddings
            pipeline.tokenizer_max_length = min(pipeline.tokenizer_max_length, positions)
            self._pipeline = pipeline
        return self._pipeline

    def _autoencoder(self) -> Any:
        if self._vae is None:
            vae = AutoModel.from_pretrained(self._source, subfolder="vae", dtype=torch.float32, revision=self.revision)
            self._vae = vae.to(self.device).requires_grad_(False).eval()
        return self._vae
