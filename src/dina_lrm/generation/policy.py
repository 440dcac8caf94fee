"""A generator that learns: an adapter of its own on a pipeline's network, whose weights exist once.

The network is a twin: modules of its own on the pipeline's storage. A reward model that was loaded from the same pipeline is
another, so neither's adapter is seen, switched or trained by the other, and the pipeline itself stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dina_lrm.backbones import AdapterConfig, BackboneConfig, available_backbones
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.backbones.sharing import adapters_off
from dina_lrm.checkpoint.tensor_files import read_tensors
from dina_lrm.errors import ConfigError
from dina_lrm.runtime.files import atomic_folder
from dina_lrm.types import Conditioning, NoisedState

__all__ = ["Policy", "kind_of"]

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"


def kind_of(pipeline: Any) -> str:
    """The name of the backbone whose network a pipeline has.

    Raises:
        ConfigError: none is known for it.
    """
    network = type(getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)).__name__
    for kind in available_backbones():
        if backbone_class(kind).network_class.__name__ == network:
            return kind
    raise ConfigError(f"no generator is known for a {type(pipeline).__name__} with a {network}")


class Policy(nn.Module):
    """The whole network of a flow-matching pipeline with LoRA; called, it gives velocities.

    Attributes:
        backbone: the network uncut, with the pipeline's encoders and VAE.
        pipeline: whose weights it reads; left as it was.
    """

    def __init__(
        self, pipeline: Any, adapter: AdapterConfig | None = None, max_sequence_length: int | None = None
    ) -> None:
        """Put a fresh adapter on a loaded pipeline's network; fresh, it changes nothing.

        Args:
            pipeline: of a flow-matching model.
            adapter: rank and targets; None takes rank 32, alpha 64 on attention.
            max_sequence_length: prompt tokens of the long text encoder; None takes the family's own.

        Raises:
            ConfigError: no flow-matching network that is known here, or one that holds somebody's adapter already.
        """
        super().__init__()
        kind = kind_of(pipeline)
        self.pipeline = pipeline
        known = backbone_class(kind)
        held = getattr(known.network_of(pipeline), "peft_config", {})
        if held:
            raise ConfigError(
                f"the pipeline holds adapters already ({', '.join(held)}), which a policy's twin of its weights would leave "
                "out; fuse them (pipeline.fuse_lora) or unload them first"
            )
        length = {} if max_sequence_length is None else {"max_sequence_length": max_sequence_length}
        config = BackboneConfig.model_validate(
            {
                "kind": kind,
                "image_taps": (0,),
                "text_taps": (0,),
                "adapter": adapter or AdapterConfig(rank=32, alpha=64),
                **length,
            }
        )
        self.backbone: PipelineBackbone = known.load(
            config, pipeline, dtype=known.network_of(pipeline).dtype, whole=True
        )

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        """Velocity `d x / d sigma` `[b c h w]`, float32.

        Args:
            state: noised latents and their sigma.
            conditioning: of each.
        """
        return self.backbone.velocity(state, conditioning)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the policy is the generator that it began as."""
        with adapters_off([self.backbone.network]):
            yield

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.device

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is learned, by plain names."""
        return {name: value for name, value in self.backbone.named_parameters() if value.requires_grad}

    def drop_text_encoders(self) -> None:
        """Free the text encoders of the pipeline itself: it must be nobody else's. Prompts are encoded before."""
        self.backbone.drop_text_encoders()
        names = [name for name in self.pipeline.components if name.startswith("text_encoder")]
        self.pipeline.register_modules(**dict.fromkeys(names))

    def move_encoders(self, device: torch.device | str) -> None:
        """Put all parts of the pipeline but its network on a device: it must be nobody else's."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.backbone.part:
                part.to(device)

    def drop_original(self) -> None:
        """Free the pipeline's own network: it must be nobody else's. Twins keep the weights that they share with it."""
        self.pipeline.register_modules(**{self.backbone.part: None})

    def sampling_pipeline(self) -> Any:
        """A pipeline of the same parts that samples from the policy as it stands."""
        parts: dict[str, Any] = dict(self.pipeline.components)
        parts[self.backbone.part] = self.backbone.network
        return type(self.pipeline)(**parts)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter so that `pipeline.load_lora_weights(folder)` reads it; whole or not at all.

        Args:
            folder: is replaced.
        """
        part = self.backbone.part
        assert self.backbone.config.adapter is not None
        metadata = self.backbone.lora_config(self.backbone.config.adapter).to_dict()
        metadata["target_modules"] = sorted(metadata["target_modules"])  # peft's set has an order of its own each time
        with atomic_folder(Path(folder)) as place:
            type(self.pipeline).save_lora_weights(
                place,
                **{f"{part}_lora_layers": self.backbone.adapter_state()},
                **{f"{part}_lora_adapter_metadata": metadata},
            )

    def load_adapter(self, folder: str | Path) -> None:
        """Take up an adapter that `save_pretrained` wrote.

        Args:
            folder: of it.

        Raises:
            CheckpointError: missing, extra or wrongly shaped tensors.
        """
        tensors = read_tensors(Path(folder) / WEIGHTS_FILE)
        prefix = f"{self.backbone.part}."
        self.backbone.load_adapter_state({name.removeprefix(prefix): value for name, value in tensors.items()})
