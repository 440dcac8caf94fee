"""What the UNets share: variance-preserving noise, convolutional grids as tokens, text that stands still.

Taps are numbered along the network: 0 is `conv_in`, then the down blocks, the mid block, the up blocks. Their widths and
resolutions differ. The one text tap is 0, the prompt's own states.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dina_lrm.backbones.base import BackboneConfig
from dina_lrm.backbones.network import NetworkFacts
from dina_lrm.backbones.pipeline import PipelineBackbone
from dina_lrm.backbones.tape import Reading, Tape
from dina_lrm.errors import ConfigError
from dina_lrm.noise import VariancePreserving
from dina_lrm.types import Conditioning, Features, FeatureShape, NoisedState


class UnetBackbone(PipelineBackbone):
    """The first blocks of a `UNet2DConditionModel`."""

    network_class = UNet2DConditionModel
    part = "unet"
    process = VariancePreserving()
    unused_parts = {"image_encoder": None, "feature_extractor": None}
    default_adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    default_text_taps = (0,)

    _trained_sigmas: Tensor | None = None

    @classmethod
    def read_facts(cls, sizes: Any) -> NetworkFacts:
        channels = sizes.block_out_channels
        return NetworkFacts(
            width=max(channels),
            temb_width=4 * channels[0],
            num_blocks=2 * len(channels) + 1,
            latent_channels=sizes.in_channels,
            prompt_width=sizes.cross_attention_dim,
            pooled_width=cls.pooled_width(sizes),
            probe="conv_in.weight",
            latent_multiple=2 ** (len(channels) - 1),
            native_latent_side=sizes.sample_size,
        )

    @classmethod
    def pooled_width(cls, sizes: Any) -> int | None:
        """Of `pooled_prompt_embeds`, if the network takes them."""
        return None

    @classmethod
    def check_taps(cls, config: BackboneConfig, sizes: Any) -> None:
        super().check_taps(config, sizes)
        if config.text_taps != (0,):
            raise ConfigError(f"text stands still in a UNet: text_taps must be (0,), got {config.text_taps}")

    @classmethod
    def cut(cls, network: Any, config: BackboneConfig) -> None:
        downs = len(network.down_blocks)
        network.down_blocks = nn.ModuleList(network.down_blocks[: max(config.depth, 1)])  # the first is given `temb`
        if config.depth <= downs:
            network.mid_block = None
        network.up_blocks = nn.ModuleList(network.up_blocks[: max(0, config.depth - downs - 1)])
        network.conv_norm_out, network.conv_act, network.conv_out = None, None, nn.Identity()

    @property
    def blocks(self) -> list[nn.Module]:
        net: Any = self.network
        return [*net.down_blocks, *([] if net.mid_block is None else [net.mid_block]), *net.up_blocks]

    @property
    def feature_shape(self) -> FeatureShape:
        """Widths and scales as the UNet's levels have them: a down block ends one level lower, an up block one higher."""
        channels = list(self._sizes.block_out_channels)
        levels = len(channels)
        lowest = levels - 1
        widths = [channels[0], *channels, channels[-1], *reversed(channels)]
        downs = [min(i + 1, lowest) for i in range(levels)]
        ups = [max(lowest - i - 1, 0) for i in range(levels)]
        scales = [2**level for level in (0, *downs, lowest, *ups)]
        taps = self.config.image_taps
        return FeatureShape(
            tuple(widths[tap] for tap in taps),
            tuple(scales[tap] for tap in taps),
            (self.facts.prompt_width,),
            self.temb_width,
        )

    def readings(self) -> list[Reading]:
        net: Any = self.network
        modules = [net.conv_in, *self.blocks]

        def grid(tap: int) -> Any:
            def write(kwargs: dict[str, Any], output: Any) -> Tape:
                hidden = output[0] if isinstance(output, tuple) else output
                return {f"image.{tap}": hidden.flatten(2).transpose(1, 2)}

            return write

        return [
            Reading(net.down_blocks[0], _temb),
            *(Reading(modules[tap], grid(tap)) for tap in self.config.image_taps),
        ]

    def read_tape(self, tape: Tape, state: NoisedState, conditioning: Conditioning) -> Features:
        image = tuple(tape[f"image.{tap}"] for tap in self.config.image_taps)
        return Features(image, (conditioning.prompt_embeds,), tape["temb"])

    def run(self, state: NoisedState, conditioning: Conditioning) -> Any:
        return self.network(
            state.noised_latents,
            self.timestep(state.sigma),
            encoder_hidden_states=conditioning.prompt_embeds,
            added_cond_kwargs=self.added(state, conditioning),
            return_dict=False,
        )

    def added(self, state: NoisedState, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the network is told besides prompt and time."""
        return None

    def timestep(self, sigma: Tensor) -> Tensor:
        """The trained timestep, a whole number, whose `sqrt(1 - alphas_cumprod)` is nearest to sigma."""
        table = self._table().float().to(sigma.device)  # mps has no float64
        above = torch.searchsorted(table, sigma.float().contiguous()).clamp(1, len(table) - 1)
        below = above - 1
        nearer = (sigma - table[below]).abs() < (table[above] - sigma).abs()
        return torch.where(nearer, below, above)

    def shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = super().shift_and_scale(like)
        config = self._autoencoder().config
        # SDXL's kind of VAE uses its factor on top of mean and deviation, where it has them.
        twice = getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None
        return shift, scale * config.scaling_factor if twice else scale

    def schedule_sigmas(self) -> Tensor:
        return self._table().flip(0).float()

    def _table(self) -> Tensor:
        if self._trained_sigmas is None:
            self._trained_sigmas = (1 - self.scheduler().alphas_cumprod.double()).sqrt()
        return self._trained_sigmas


def _temb(kwargs: dict[str, Any], output: Any) -> Tape:
    return {"temb": kwargs["temb"]}
