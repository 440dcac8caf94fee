"""What every backbone offers: prompts, images and noised states in, features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dina_lrm.config import Config
from dina_lrm.errors import CheckpointError, ConfigError
from dina_lrm.noise import ForwardProcess
from dina_lrm.types import Conditioning, Features, NoisedState

ADAPTER_NAME = "reward"


class AdapterConfig(Config):
    """LoRA on a backbone's projections (Hu et al. 2021).

    Attributes:
        rank: r.
        alpha: the branch is scaled by alpha / rank.
        target_modules: suffixes of the linear layers to adapt; None takes the backbone's own list.
    """

    rank: int = Field(64, ge=1)
    alpha: float = Field(128, gt=0)
    target_modules: tuple[str, ...] | None = None


class BackboneConfig(Config):
    """How much of a pretrained network is kept, and what is read from it.

    Attributes:
        kind: name of the backbone in the registry.
        image_taps: after how many blocks image tokens are read; 0 is the embedding.
        text_taps: the same for text tokens.
        max_sequence_length: prompt tokens of the long text encoder; saved, because scores depend on it.
        adapter: LoRA, or None for a frozen backbone.
    """

    kind: str = "sd3"
    image_taps: tuple[int, ...] = (4, 8, 12)
    text_taps: tuple[int, ...] = (4, 8, 12)
    max_sequence_length: int = Field(128, ge=0)
    adapter: AdapterConfig | None = AdapterConfig()

    @field_validator("image_taps", "text_taps")
    @classmethod
    def _rising(cls, taps: tuple[int, ...]) -> tuple[int, ...]:
        if not taps or taps[0] < 0 or any(b <= a for a, b in zip(taps, taps[1:], strict=False)):
            raise ValueError(f"taps must be rising block counts, 0 or more, such as (4, 8, 12); got {taps}")
        return taps

    @property
    def depth(self) -> int:
        """Blocks to keep."""
        return max(self.image_taps[-1], self.text_taps[-1])


class Backbone(nn.Module, ABC):
    """A pretrained diffusion network, cut after its last tap, with the encoders that feed it.

    Only the cut network is a submodule. Text encoders and VAE stay outside the parameter list, are loaded when first
    asked for and can be dropped with `drop_encoders`.
    """

    config: BackboneConfig
    process: ForwardProcess
    network: nn.Module
    base: str
    revision: str | None = None

    width: int
    temb_width: int
    latent_channels: int
    default_adapter_targets: tuple[str, ...]

    @abstractmethod
    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """Tokens after each tapped block; differentiable in `state.noised_latents`."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        """Text states as the base's own pipeline makes them; the length defaults to the config's."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """`[b 3 y x]` in 0..1 to shifted and scaled latents `[b c h w]`: posterior mode, no randomness."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents `[b c h w]` to pixels `[b 3 y x]` in 0..1."""

    @abstractmethod
    def schedule_sigmas(self) -> Tensor:
        """The base scheduler's training table of noise levels, falling, `[n]`."""

    @abstractmethod
    def drop_encoders(self) -> None:
        """Free text encoders and VAE; they are loaded again when asked for, if the base is a folder or hub id."""

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """What makes a base the same base: class, sizes and a few weights, as JSON values."""

    @property
    @abstractmethod
    def image_multiple(self) -> int:
        """Image sides must be multiples of this."""

    @property
    @abstractmethod
    def native_size(self) -> int:
        """Side in pixels of the square images the base was made for."""

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """The same as `features`."""
        return self.features(state, conditioning)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's base weights."""
        return next(p for n, p in self.network.named_parameters() if "lora_" not in n).dtype

    def add_adapter(self, adapter: AdapterConfig) -> None:
        """Inject LoRA; the base is frozen, the adapter is float32 whatever the base's dtype."""
        from peft import LoraConfig, inject_adapter_in_model

        targets = list(adapter.target_modules or self.default_adapter_targets)
        lora = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=targets,
            init_lora_weights="gaussian",
        )
        self.network.requires_grad_(False)
        try:
            inject_adapter_in_model(lora, self.network, adapter_name=ADAPTER_NAME)
        except ValueError as error:
            raise ConfigError(f"target_modules {targets} fit no layer of this backbone") from error
        for name, parameter in self.network.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()

    def adapter_state(self) -> dict[str, Tensor]:
        """LoRA tensors by plain names, `transformer_blocks.0.attn.to_q.lora_A.weight`."""
        return {
            name.replace(f".{ADAPTER_NAME}.", "."): value.detach()
            for name, value in self.network.state_dict().items()
            if ".lora_" in name
        }

    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        """Fill the injected LoRA from plain names; every tensor must find its place.

        Raises:
            CheckpointError: missing, extra or wrongly shaped tensors.
        """
        own = {
            name.replace(f".{ADAPTER_NAME}.", "."): p for name, p in self.network.named_parameters() if ".lora_" in name
        }
        load_strict(own, tensors, "adapter")


def load_strict(own: dict[str, Any], tensors: dict[str, Tensor], what: str) -> None:
    """Copy tensors into parameters by name.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors, or values that are not finite.
    """
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing:
        raise CheckpointError(
            f"{what} lacks {len(missing)} tensors, the first is {missing[0]!r}; is the file complete?"
        )
    if extra:
        raise CheckpointError(f"{what} has {len(extra)} tensors that fit nowhere, the first is {extra[0]!r}")
    with torch.no_grad():
        for name, value in tensors.items():
            if own[name].shape != value.shape:
                raise CheckpointError(
                    f"{what} tensor {name!r} must be {list(own[name].shape)}, got {list(value.shape)}"
                )
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{what} tensor {name!r} has values that are not finite")
            own[name].copy_(value)
