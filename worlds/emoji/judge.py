"""Train the judge of the emoji world on real art alone: which concept a picture shows, and how clean it is.

It sees every style, the held-out one and two more that are not shipped, with mild augmentation and with graded damage.
Only one picture in 25, with its whole family of shapes, is kept back to measure how well it reads unseen art.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, Log, read_art, warmup_cosine

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.worlds.damage import DAMAGES, damage
from dina_lrm.worlds.judge import Judge

FAMILY = {"flat": "fluent", "glossy": "fluent", "3d": "fluent"}  # the same outlines


def keep_back(concept: str, style: str) -> bool:
    """Whether the judge never sees this picture."""
    return hashlib.sha256(f"judge {concept} {FAMILY.get(style, style)}".encode()).digest()[0] < 10


def read_everything() -> list[dict[str, Any]]:
    """The shipped art and, where the recipe has fetched it, that of the judge alone."""
    extra = ROOT / "build" / "judge-art"
    more = tuple(sorted(path.stem for path in extra.glob("*.parquet")))
    return read_art((*TRAINED_STYLES, HELD_OUT_STYLE)) + read_art(more, extra)


def spoil(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One or two damages a picture, uint8 `[b 3 64 64]`; with the quality that is left, `[b]`."""
    out, quality = torch.empty_like(pixels), torch.ones(len(pixels))
    for i, picture in enumerate(pixels):
        picture = picture.float() / 255
        for _ in range(1 + int(torch.rand((), generator=generator) < 0.35)):
            kind = DAMAGES[int(torch.randint(len(DAMAGES), (), generator=generator))]
            strength = float(torch.rand((), generator=generator))
            picture = damage(picture, kind, strength, int(torch.randint(2**31, (), generator=generator)))
            quality[i] *= 1 - strength
        out[i] = (picture * 255).round().to(torch.uint8)
    return out, quality


def move(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flips and whole-pixel shifts, which leave quality as it is: `[b 3 64 64]` in 0..1."""
    flipped = torch.rand(len(pixels), generator=generator) < 0.3
    pixels = torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    return F.pad(pixels, (4, 4, 4, 4), value=1.0)[:, :, dy : dy + 64, dx : dx + 64]


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mild change of place, size, slant, colour, sharpness and noise: `[b 3 64 64]` in 0..1."""

    def draw(*size: int) -> Tensor:
        return 2 * torch.rand(len(pixels), *size, generator=generator) - 1

    theta = torch.eye(2, 3).repeat(len(pixels), 1, 1) * (1 + 0.12 * draw(1, 1)) + 0.1 * draw(2, 3)
    mirrored = torch.rand(len(pixels), generator=generator) < 0.3
    theta[mirrored, :, 0] *= -1
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = 1 + F.grid_sample(pixels - 1, grid, align_corners=False)
    soft = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    pixels = pixels.lerp(soft, torch.rand(len(pixels), 1, 1, 1, generator=generator) ** 2)
    pixels = pixels * (1 + 0.12 * draw(3, 1, 1)) + 0.06 * draw(3, 1, 1)
    loud = 0.06 * torch.rand(len(pixels), 1, 1, 1, generator=generator) ** 2
    return (pixels + loud * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


@torch.no_grad()
def measure(judge: Judge, pixels: Tensor, concept: Tensor) -> dict[str, float]:
    """Top-1 and top-10 accuracy and mean quality on uint8 pictures."""
    judge.eval()
    parts = [judge(part.float() / 255) for part in pixels.split(128)]
    ranked = torch.cat([logits for logits, _ in parts]).topk(10).indices == concept[:, None]
    quality = torch.cat([logit for _, logit in parts]).sigmoid().mean()
    judge.train()
    return {
        "top1": ranked[:, 0].float().mean().item(),
        "top10": ranked.any(1).float().mean().item(),
        "quality": quality.item(),
    }


@torch.no_grad()
def measure_quality(judge: Judge, pixels: Tensor) -> dict[str, list[float]]:
    """Mean quality of uint8 pictures at strengths 0.1, 0.25, 0.5, 0.75 and 1 of each damage."""
    judge.eval()
    return {
        kind: [
            round(
                judge.quality(torch.stack([damage(p.float() / 255, kind, s, i) for i, p in enumerate(pixels)]))
                .mean()
                .item(),
                3,
            )
            for s in (0.1, 0.25, 0.5, 0.75, 1.0)
        ]
        for kind in DAMAGES
    }


def train(out: Path, steps: int, lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    art = read_everything()
    concepts = sorted({row["concept"] for row in art})
    index = {name: i for i, name in enumerate(concepts)}
    unseen = torch.tensor([keep_back(row["concept"], row["style"]) for row in art])
    pixels, concept = torch.stack([row["pixels"] for row in art]), torch.tensor([index[row["concept"]] for row in art])
    held_pixels, held_concept = pixels[unseen], concept[unseen]
    pixels, concept = pixels[~unseen], concept[~unseen]
    spoiled, quality = spoil(pixels, generator)
    print(f"{len(pixels)} pictures, {len(held_pixels)} kept back, {len(concepts)} concepts", flush=True)

    judge = Judge(concepts).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    log = Log(ROOT / "build" / "logs" / "judge.jsonl")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps, 100)
        drawn, clean, hurt = torch.randint(len(pixels), (128,), generator=generator).split((64, 24, 40))
        parts = (
            augment(pixels[drawn].float() / 255, generator),
            move(pixels[clean].float() / 255, generator),
            move(spoiled[hurt].float() / 255, generator),
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits, worth = judge(torch.cat(parts).contiguous(memory_format=torch.channels_last))
        left = torch.cat([torch.ones(len(clean)), quality[hurt]])
        # What a badly hurt picture shows matters less: its concept may be beyond recognition.
        weight = torch.cat([torch.ones(len(drawn) + len(clean)), quality[hurt].sqrt()])
        truth = torch.cat([concept[drawn], concept[clean], concept[hurt]])
        error = F.cross_entropy(logits.float(), truth, label_smoothing=0.05, reduction="none")
        of_concept = (weight * error).sum() / weight.sum()
        of_quality = (worth[len(drawn) :].float().sigmoid() - left).square().mean()
        optimizer.zero_grad()
        (of_concept + 10 * of_quality).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        optimizer.step()
        if step % 100 == 99 or step == steps - 1:
            now = measure(judge, held_pixels, held_concept)
            log.write(
                step=step + 1,
                concept=of_concept.item(),
                quality=of_quality.item(),
                **{f"unseen_{k}": v for k, v in now.items()},
            )
        if step % 300 == 299 or step == steps - 1:
            judge.save(out)
    results = {
        "seen": measure(judge, pixels, concept),
        "unseen": measure(judge, held_pixels, held_concept),
        "spoiled": measure(judge, spoiled, concept),
        "num_seen": len(pixels),
        "num_unseen": len(held_pixels),
        "quality_by_strength_of_damage": measure_quality(judge, held_pixels[:100]),
    }
    print(json.dumps(results), flush=True)
    (ROOT / "build" / "logs" / "judge.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "judge")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
