"""Ways to spoil a picture, each graded by a strength in 0..1.

Strengths are comparable between kinds on 64-pixel art: kinds that keep outlines in place were set to move a picture
about equally far, in pixels and in edges, at equal strength (about 0.25 times the strength, root mean square over three
scales); kinds that move outlines go further in pixels for the same harm, and were set by eye. At 0 nothing changes; at
1 the motif can just be told.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def add_noise(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise in every channel."""
    return pixels + 0.22 * strength * torch.randn(pixels.shape, generator=generator)


def convolve(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with one odd-sized kernel `[j k]`, edges repeated."""
    tall, wide = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(pixels[None], (wide, wide, tall, tall), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, *kernel.shape), groups=3)[0]


def blur(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur."""
    spread = 0.25 + 3.7 * strength**1.2
    x = torch.arange(-12.0, 13.0)
    line = torch.exp(-0.5 * (x / spread) ** 2).view(1, -1)
    return convolve(convolve(pixels, line / line.sum()), line.T / line.sum())


def blur_by_motion(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A straight trail in a random direction."""
    angle = math.pi * float(torch.rand((), generator=generator))
    along = torch.linspace(-0.5, 0.5, 33) * (1 + 15 * strength**1.2)
    kernel = torch.zeros(21, 21)
    for dx, dy in zip((along * math.cos(angle)).tolist(), (along * math.sin(angle)).tolist(), strict=True):
        x, y = 10 + dx, 10 + dy
        for column in (int(x), int(x) + 1):
            for row in (int(y), int(y) + 1):
                if 0 <= column < 21 and 0 <= row < 21:
                    kernel[row, column] += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
    return convolve(pixels, kernel / kernel.sum())


def compress(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """JPEG with coarse tables and halved colour resolution."""
    out = io.BytesIO()
    array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(array).save(out, "JPEG", quality=max(1, round(90 * (1 - strength) ** 2)), subsampling=2)
    return torch.from_numpy(np.array(Image.open(out))).permute(2, 0, 1).float() / 255


def posterise(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Few levels a channel, at a random offset, so that flat colours change too."""
    steps = 10 * (1 - strength) ** 2 + 1.4
    offset = 0.5 * torch.rand(3, 1, 1, generator=generator)
    return ((pixels * steps + offset).round() - offset) / steps


def pixelate(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Square blocks of one colour."""
    height, width = pixels.shape[-2:]
    size = max(2, round(min(height, width) / (1.05 + 8 * strength**1.5)))
    small = F.interpolate(pixels[None], size=(size, size), mode="area")
    return F.interpolate(small, size=(height, width), mode="nearest")[0]


def occlude(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Rectangles of random colours over a share of the picture, each over a random place."""
    out = pixels.clone()
    height, width = pixels.shape[-2:]
    count = 1 + int(torch.randint(3, (), generator=generator))
    for _ in range(count):
        area = 0.24 * strength**2 * height * width / count
        ratio = 0.6 + 0.8 * float(torch.rand((), generator=generator))
        tall = min(height, max(2, round(math.sqrt(area) * ratio)))
        wide = min(width, max(2, round(math.sqrt(area) / ratio)))
        centre = 0.2 + 0.6 * torch.rand(2, generator=generator)
        top = min(max(0, round(float(centre[0]) * height - tall / 2)), height - tall)
        left = min(max(0, round(float(centre[1]) * width - wide / 2)), width - wide)
        out[:, top : top + tall, left : left + wide] = torch.rand(3, 1, 1, generator=generator)
    return out


def fade(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Contrast loss towards one random grey."""
    grey = 0.35 + 0.4 * float(torch.rand((), generator=generator))
    return pixels + 0.6 * strength * (grey - pixels)


def rotate_hue(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn colours around the grey axis, either way."""
    sign = 1 if float(torch.rand((), generator=generator)) < 0.5 else -1
    angle = torch.tensor(sign * 0.65 * math.pi * strength**1.1)
    third, root = 1 / 3, math.sqrt(1 / 3)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row = torch.stack([cos + third * (1 - cos), third * (1 - cos) - root * sin, third * (1 - cos) + root * sin])
    return torch.einsum("ij,jyx->iyx", torch.stack([row.roll(i) for i in range(3)]), pixels)


def desaturate(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Towards grey of the same brightness, and a little darker."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (pixels * weights).sum(0, keepdim=True)
    return (1 - 0.15 * strength) * (pixels + strength * (grey - pixels))


def resample(pixels: Tensor, shift: Tensor) -> Tensor:
    """Read the picture at places moved by `shift [y x 2]` (x, y in -1..1 units), white outside."""
    height, width = pixels.shape[-2:]
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) + shift
    return 1 + F.grid_sample(pixels[None] - 1, grid[None], mode="bilinear", align_corners=True)[0]


def swirl(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn the middle, less and less towards the rim."""
    sign = 1 if float(torch.rand((), generator=generator)) < 0.5 else -1
    height, width = pixels.shape[-2:]
    x, y = torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy")
    angle = sign * 2.4 * strength**1.5 * torch.exp(-2.5 * (x**2 + y**2))
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=-1)
    return resample(pixels, turned - torch.stack([x, y], dim=-1))


def warp(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Smooth random displacement."""
    coarse = torch.randn(1, 2, 6, 6, generator=generator)
    shift = F.interpolate(coarse, size=tuple(pixels.shape[-2:]), mode="bicubic", align_corners=True)[0]
    return resample(pixels, 0.15 * strength**1.2 * shift.permute(1, 2, 0))


def smear(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each pixel read from near its place, then smoothed: paint that has run."""
    height, width = pixels.shape[-2:]
    coarse = torch.randn(1, 2, 20, 20, generator=generator)
    shift = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0]
    return blur(resample(pixels, 0.13 * strength * shift.permute(1, 2, 0)), 0.45 * strength, generator)


def scramble(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Trade places among some of 8 x 8 tiles."""
    height, width = pixels.shape[-2] // 8, pixels.shape[-1] // 8
    tiles = pixels[:, : height * 8, : width * 8].unfold(1, height, height).unfold(2, width, width)
    tiles = tiles.reshape(3, 64, height, width).clone()
    chosen = torch.randperm(64, generator=generator)[: max(2, round(24 * strength**1.3))]
    tiles[:, chosen] = tiles[:, chosen.roll(1)]
    out = pixels.clone()
    joined = tiles.view(3, 8, 8, height, width).permute(0, 1, 3, 2, 4)
    out[:, : height * 8, : width * 8] = joined.reshape(3, height * 8, width * 8)
    return out


_KINDS = {
    "noise": add_noise,
    "blur": blur,
    "motion": blur_by_motion,
    "jpeg": compress,
    "posterise": posterise,
    "pixelate": pixelate,
    "occlude": occlude,
    "fade": fade,
    "hue": rotate_hue,
    "desaturate": desaturate,
    "swirl": swirl,
    "warp": warp,
    "smear": smear,
    "scramble": scramble,
}
DAMAGES: tuple[str, ...] = tuple(_KINDS)


def damage(pixels: Tensor, kind: str, strength: float, seed: int) -> Tensor:
    """Spoil one picture `[3 y x]` (RGB, 0..1) in the way `kind` of `DAMAGES`; the same seed gives the same damage."""
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(DAMAGES)}, not {kind!r}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be within 0..1, not {strength}")
    if strength == 0:
        return pixels.clone()
    return _KINDS[kind](pixels, strength, torch.Generator().manual_seed(seed)).clamp(0, 1)
