"""The autoencoder of the emoji world: diffusers' `AutoencoderKL`, 64 x 64 pixels to 16 x 8 x 8 latents.

Trained on the train split of the four training styles. After training, each latent channel's mean and spread over the
training art are folded into the 1 x 1 convolutions around the latent, so that latents are standard (mean 0, spread 1)
with `scaling_factor=1` and `shift_factor=0`.

Two choices matter at this size. Two norm groups, not 32: with few channels a group, GroupNorm removes the flat colour
that emoji are made of. And a weak KL term: it only has to keep the latent bounded, the diffusion model does the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, Ema, Log, psnr, read_art, warmup_cosine


def create_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(16, 48, 96, 192),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, quarter turns, shifts on white and swapped colour channels: `[b 3 64 64]` in 0..1."""

    def chance(p: float) -> bool:
        return bool(torch.rand((), generator=generator) < p)

    out = []
    for picture in pixels:
        if chance(0.5):
            picture = picture.flip(-1)
        if chance(0.2):
            picture = picture.rot90(int(torch.randint(1, 4, (), generator=generator)), (-2, -1))
        if chance(0.3):
            picture = picture[torch.randperm(3, generator=generator)]
        if chance(0.5):
            dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
            picture = F.pad(picture, (4, 4, 4, 4), value=1.0)[:, dy : dy + 64, dx : dx + 64]
        out.append(picture)
    return torch.stack(out)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Posterior mode and back, `[b 3 y x]` in 0..1."""
    out = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample for x in pixels.split(64)]
    return torch.cat(out) / 2 + 0.5


@torch.no_grad()
def standardise(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Fold the latents' mean and spread per channel into quant_conv and post_quant_conv."""
    latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in pixels.split(64)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()  # the second half is log-variance
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std.view(1, -1, 1, 1)


def train(out: Path, steps: int, batch: int, lr: float, kl_weight: float, seed: int, start: Path | None) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    art = read_art(TRAINED_STYLES)
    pixels = torch.stack([row["pixels"] for row in art if row["split"] == "train"]).float() / 255
    held = torch.stack([row["pixels"] for row in art if row["split"] == "held_out"]).float() / 255
    other = torch.stack([row["pixels"] for row in read_art((HELD_OUT_STYLE,))]).float() / 255
    vae = (AutoencoderKL.from_pretrained(start) if start else create_vae()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema, log = Ema(vae, 0.999), Log(out.parent / "logs" / ("vae-continued.jsonl" if start else "vae.jsonl"))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, 200)
        chosen = torch.randint(0, len(pixels), (batch,), generator=generator)
        x = (augment(pixels[chosen], generator) * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=step < 0.9 * steps):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        error = (y - x).square().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = error + 0.25 * (y - x).abs().mean() + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        if step % 250 == 249 or step == steps - 1:
            now = ema.module
            log.write(
                step=step + 1,
                loss=loss.item(),
                kl=kl.item(),
                psnr_train=psnr(reconstruct(now, pixels[:128]), pixels[:128]).mean().item(),
                psnr_held_out=psnr(reconstruct(now, held), held).mean().item(),
                psnr_unseen_style=psnr(reconstruct(now, other[:128]), other[:128]).mean().item(),
            )
        if step % 250 == 249:
            now.save_pretrained(out.with_name(out.name + "-unfinished"))
    standardise(ema.module, pixels)
    ema.module.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "vae")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl-weight", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from, a `-unfinished` folder of an earlier run")
    arguments = parser.parse_args()
    train(**vars(arguments))
