"""What every backbone offers: prompts, images and noised states in, features out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from dina_lrm.backbones.sharing import adapters_off, put
from dina_lrm.config import Config
from dina_lrm.errors import CheckpointError, ConfigError
from dina_lrm.noise import ForwardProcess
from dina_lrm.types import Conditioning, Features, FeatureShape, NoisedState

ADAPTER_NAME = "reward"


class AdapterConfig(Config):
    """LoRA on a backbone's projections (Hu et al. 2021).

    Attributes:
        rank: r.
        alpha: the branch is scaled by alpha / rank.
        target_modules: suffixes of the linear layers to adapt; None takes the backbone's own list.
        exclude_modules: suffixes of layers that target_modules names and that stay as they are.
    """

    rank: int = Field(64, ge=1)
    alpha: float = Field(128, gt=0)
    target_modules: tuple[str, ...] | None = None
    exclude_modules: tuple[str, ...] = ()


class BackboneConfig(Config):
    """How much of a pretrained network is kept, and what is read from it.

    Attributes:
        kind: name of the backbone in the registry.
        image_taps: after how many blocks image tokens are read; 0 is the embedding. The default is the kind's own.
        text_taps: the same for text tokens.
        max_sequence_length: prompt tokens of the long text encoder; saved, because scores depend on it.
        adapter: LoRA, or None.
        weights: "base": the pretrained weights as they are; "own": the model brings (and training changes) all weights of
            the network that are kept.
    """

    kind: str = "sd3"
    image_taps: tuple[int, ...] = (4, 8, 12)
    text_taps: tuple[int, ...] = (4, 8, 12)
    max_sequence_length: int = Field(128, ge=0)
    adapter: AdapterConfig | None = AdapterConfig()
    weights: Literal["base", "own"] = "base"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        """What another kind leaves unsaid is its own to say; the defaults above are SD3's."""
        kind = values.get("kind", "sd3") if isinstance(values, dict) else "sd3"
        if kind == "sd3" or {"image_taps", "text_taps", "max_sequence_length"} <= values.keys():
            return values
        from dina_lrm.backbones.registry import available_backbones, backbone_class

        if kind not in available_backbones():
            return values  # who loads it says which there are
        backbone = backbone_class(kind)
        own = {
            "image_taps": backbone.default_image_taps,
            "text_taps": backbone.default_text_taps,
            "max_sequence_length": getattr(backbone, "default_max_sequence_length", 128),
        }
        return {**own, **values}

    @field_validator("image_taps", "text_taps")
    @classmethod
    def _rising(cls, taps: tuple[int, ...]) -> tuple[int, ...]:
        if not taps or taps[0] < 0 or any(b <= a for a, b in zip(taps, taps[1:], strict=False)):
            raise ValueError(f"taps must be rising block counts, 0 or more, such as (4, 8, 12); got {taps}")
        return taps

    @model_validator(mode="after")
    def _one_way_to_learn(self) -> Self:
        if self.weights == "own" and self.adapter is not None:
            raise ValueError("weights 'own' learns the whole network, so adapter must be null")
        return self

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
    default_image_taps: tuple[int, ...]
    default_text_taps: tuple[int, ...]

    _merged_adapter: dict[str, Tensor] | None = None

    @classmethod
    @abstractmethod
    def load(
        cls,
        config: BackboneConfig,
        base: Any,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        random_seed: int | None = None,
    ) -> Self:
        """What `load_backbone` calls.

        Args:
            config: what to keep and to read.
            base: folder, hub id, or whatever of the pretrained network is loaded already.
            dtype: of the base weights.
            revision: of the hub repository.
            random_seed: random weights drawn with it instead of the pretrained ones: the control of an experiment.
        """

    @abstractmethod
    def features(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """Tokens after each tapped block; differentiable in `state.noised_latents`."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None = None) -> Conditioning:
        """Text states as the base's own pipeline makes them; the length defaults to the config's."""

    def cut_prompts(self, prompts: Sequence[str]) -> list[bool]:
        """Which prompts are longer than what is read of them; a backbone that cannot tell says none."""
        return [False] * len(prompts)

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

    @property
    def feature_shape(self) -> FeatureShape:
        """Widths and scales of the taps, for the head."""
        taps = self.config
        return FeatureShape.uniform(self.width, self.temb_width, len(taps.image_taps), len(taps.text_taps))

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated parts of the network, in order: what is compiled and checkpointed."""
        return []

    def check(self, state: NoisedState, conditioning: Conditioning) -> None:
        """Refuse latents and embeddings that are not this backbone's; one that does not say so takes all.

        Raises:
            ShapeError: naming what was expected.
            ValueRangeError: sigma outside [0, 1].
        """

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Features:
        """The same as `features`."""
        return self.features(state, conditioning)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's base weights: of the largest, for a few small ones the libraries keep in float32."""
        return max((p for n, p in self.network.named_parameters() if "lora_" not in n), key=torch.numel).dtype

    def activation_bytes(self, latents_shape: Sequence[int], prompt_length: int, with_gradient: bool = False) -> int:
        """Peak bytes of activations of one state's features.

        Args:
            latents_shape: of one sample, without the batch axis.
            prompt_length: tokens of `prompt_embeds`.
            with_gradient: keep what a gradient to the latents needs.

        Raises:
            ConfigError: this backbone does not count them.
        """
        raise ConfigError(f"{type(self).__name__} counts no memory; give max_batch_size instead of memory_budget")

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block's forward, once for all blocks of a kind; taps and embedders stay eager.

        Args:
            options: of `torch.compile`, such as `mode` or `dynamic`.

        Raises:
            ConfigError: this backbone names no blocks.
        """
        if not self.blocks:
            raise ConfigError(f"{type(self).__name__} names no blocks to compile")
        for block in self.blocks:
            block.forward = torch.compile(block.forward, **options)

    def enable_gradient_checkpointing(self) -> None:
        """Keep no activations inside blocks: they are computed again when gradients ask for them.

        Raises:
            ConfigError: the network cannot.
        """
        enable = getattr(self.network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ConfigError(f"{type(self.network).__name__} has no gradient checkpointing")
        enable()

    def add_adapter(self, adapter: AdapterConfig) -> None:
        """Inject LoRA; the base is frozen, the adapter is float32 whatever the base's dtype."""
        from peft import inject_adapter_in_model

        lora = self.lora_config(adapter)
        self.network.requires_grad_(False)
        try:
            inject_adapter_in_model(lora, self.network, adapter_name=ADAPTER_NAME)
        except ValueError as error:
            raise ConfigError(f"target_modules {sorted(lora.target_modules)} fit no layer of this backbone") from error
        for name, parameter in self.network.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()

    def lora_config(self, adapter: AdapterConfig) -> Any:
        """An adapter in peft's terms."""
        from peft import LoraConfig

        return LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=list(adapter.target_modules or self.default_adapter_targets),
            exclude_modules=list(adapter.exclude_modules) or None,
            init_lora_weights="gaussian",
        )

    def merge_adapter(self) -> None:
        """Add `alpha / rank * B A` to the base weights, in float32 whatever their dtype, and drop the branches.

        Scoring costs what the bare base costs. Weights shared with a loaded pipeline are not written to: those adapted
        become copies. `adapter_state` still gives the adapter.
        """
        from peft.tuners.lora import LoraLayer

        state = {name: value.cpu() for name, value in self.adapter_state().items()}
        for name, layer in list(self.network.named_modules()):
            if isinstance(layer, LoraLayer):
                base: Any = copy.copy(layer.get_base_layer())
                whole = base.weight.float() + layer.get_delta_weight(ADAPTER_NAME).float()
                base._parameters = {**base._parameters, "weight": nn.Parameter(whole.to(base.weight.dtype), False)}
                self.network.set_submodule(name, base)
        self._merged_adapter = state

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the network is the bare base.

        Raises:
            ConfigError: the adapter is merged.
        """
        if self._merged_adapter is not None:
            raise ConfigError("the adapter is merged into the weights; load the model with merge_adapter=False")
        with adapters_off([self.network]):
            yield

    def adapter_state(self) -> dict[str, Tensor]:
        """LoRA tensors by plain names, `transformer_blocks.0.attn.to_q.lora_A.weight`."""
        if self._merged_adapter is not None:
            return dict(self._merged_adapter)
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

    def network_state(self) -> dict[str, Tensor]:
        """All kept weights of the network by the library's names, with `weights="own"`."""
        return {name: value.detach() for name, value in self.network.state_dict().items()}

    def load_network_state(self, tensors: dict[str, Tensor]) -> None:
        """Replace the kept weights; every tensor must find its place. Weights shared with a pipeline are replaced, not written.

        Raises:
            CheckpointError: missing, extra or wrongly shaped tensors.
        """
        own = self.network.state_dict(keep_vars=True)
        fresh = {name: torch.empty_like(value) for name, value in own.items()}
        load_strict(fresh, tensors, "network")
        for name, value in fresh.items():
            put(self.network, name, value, own[name].requires_grad)


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
