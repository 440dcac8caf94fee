"""Fit the oracle's style reader: one linear layer on the judge's texture statistics of real art.

It learns from what the autoencoder makes of the art, clean and mildly damaged, because that is what the oracle looks
at. Like the judge it learns from all real art, for it states a truth and is not to be fooled by a drawing it never
saw; a second fit that leaves out the concepts of the test split measures how it reads new drawings, such as the
generator's. Results are printed and kept in `oracle/results.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, read_art
from pool import decode, encode, seed_of, split_of

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.worlds.damage import DAMAGES, damage
from dina_lrm.worlds.judge import Judge
from dina_lrm.worlds.oracle import Oracle, StyleReader, texture

STYLES = (*TRAINED_STYLES, HELD_OUT_STYLE)


def spoil(pixels: Tensor, strength: float) -> Tensor:
    """Each picture with a damage of its own, at a strength up to the given one; `[b 3 y x]` in 0..1."""
    out = []
    for i, picture in enumerate(pixels):
        generator = torch.Generator().manual_seed(seed_of("spoil", i) % 2**31)
        kind = DAMAGES[int(torch.randint(len(DAMAGES), (), generator=generator))]
        out.append(damage(picture, kind, strength * float(torch.rand((), generator=generator)), i))
    return torch.stack(out)


@torch.no_grad()
def textures(judge: Judge, vae: AutoencoderKL, pixels: Tensor, strength: float = 0.0) -> Tensor:
    """Texture statistics of the reconstructions of uint8 pictures, damaged first if a strength is given; `[b t]`."""
    out = []
    for part in pixels.split(64):
        part = part.float() / 255
        out.append(texture(judge, decode(vae, encode(vae, spoil(part, strength) if strength else part))))
    return torch.cat(out)


def fit(features: Tensor, style: Tensor, weight_decay: float = 3e-3) -> StyleReader:
    """Logistic regression to its optimum."""
    reader = StyleReader(STYLES, features.shape[1])
    reader.mean.copy_(features.mean(0))
    reader.std.copy_(features.std(0) + 1e-4)
    torch.nn.init.zeros_(reader.linear.weight)
    torch.nn.init.zeros_(reader.linear.bias)
    optimizer = torch.optim.LBFGS(reader.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.nll_loss(reader(features), style) + weight_decay * reader.linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return reader.eval().requires_grad_(False)


def measure(reader: StyleReader, features: Tensor, style: Tensor) -> dict[str, float]:
    """Share of styles told right, over all and by style, and the mean log-probability of the right one."""
    log_probs = reader(features)
    right = (log_probs.argmax(1) == style).float()
    by_style = {name: round(right[style == i].mean().item(), 3) for i, name in enumerate(STYLES)}
    return {
        "pictures": len(style),
        "accuracy": round(right.mean().item(), 4),
        "log_prob": round(-F.nll_loss(log_probs, style).item(), 3),
        **by_style,
    }


def main(vae_folder: Path, judge_folder: Path, out: Path, num_damaged: int) -> None:
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float16).float().eval()
    judge = Judge.from_folder(judge_folder)
    art = read_art(STYLES)
    pixels = torch.stack([row["pixels"] for row in art])
    style = torch.tensor([STYLES.index(row["style"]) for row in art])
    held = torch.tensor([split_of(row["concept"]) == "test" for row in art])
    hurt = torch.randperm(len(art), generator=torch.Generator().manual_seed(0))[:num_damaged]
    features = torch.cat([textures(judge, vae, pixels), textures(judge, vae, pixels[hurt], strength=0.6)])
    style, held = torch.cat([style, style[hurt]]), torch.cat([held, held[hurt]])
    clean = torch.arange(len(style)) < len(art)
    reader, without_test = fit(features, style), fit(features[~held], style[~held])
    results = {
        "all": measure(reader, features[clean], style[clean]),
        "all_damaged": measure(reader, features[~clean], style[~clean]),
        "unseen_concepts": measure(without_test, features[held & clean], style[held & clean]),
        "unseen_concepts_damaged": measure(without_test, features[held & ~clean], style[held & ~clean]),
    }
    Oracle(judge, reader, {}).save(out)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=ROOT / "pipeline" / "vae")
    parser.add_argument("--judge", type=Path, default=ROOT / "judge")
    parser.add_argument("--out", type=Path, default=ROOT / "oracle")
    parser.add_argument("--damaged", type=int, default=1200, help="how many pictures are shown damaged too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.vae, arguments.judge, arguments.out, arguments.damaged)
