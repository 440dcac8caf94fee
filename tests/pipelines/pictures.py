"""Autoencoders with the real ratios: pixels to latents, latents to what the network is trained on."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL

_VIDEO = dict(base_dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True])


def autoencoder(channels: int, scale: float, shift: float | None = None) -> AutoencoderKL:
    """Eight pixels to a latent.

    Args:
        channels: of the latents; those of four have convolutions around the bottleneck, those of sixteen have none.
        scale: the real `scaling_factor`.
        shift: the real `shift_factor`.
    """
    return AutoencoderKL(
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=128,
        force_upcast=True,
    )


def video_autoencoder(kind: Any) -> Any:
    """Eight pixels to a latent, four frames to one; the means and deviations are the class's own, and the real ones.

    Args:
        kind: Wan's class, or Qwen-Image's, which is the same network with the same numbers.
    """
    return kind(**_VIDEO)
