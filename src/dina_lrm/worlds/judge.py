"""The independent judge of the emoji world: what does a picture show, and how clean is it?

A small convolutional network in pixel space, trained on real art only. It shares nothing with the generator: no
autoencoder, no text encoder, no sentence embeddings. It ranks generated pictures, and it is the oracle from which
programmatic preferences are drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIZE = 64


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inner, outer, 1, bias=False))

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(hidden)))))
        return F.relu(out + self.shortcut(hidden))


class Judge(nn.Module):
    """Two readings of a picture: log-probabilities over concepts, and a quality in 0..1."""

    def __init__(self, concepts: list[str], widths: tuple[int, int, int, int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.concepts = list(concepts)
        self.widths = tuple(widths)
        a, b, c, d = widths
        self.stem = nn.Sequential(nn.Conv2d(12, a, 3, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.stage1 = nn.Sequential(Block(a, b, 2))
        self.stage2 = nn.Sequential(Block(b, c, 2), Block(c, c, 1))
        self.stage3 = nn.Sequential(Block(c, d, 2), Block(d, d, 1))
        self.concept_head = nn.Linear(d, len(concepts))
        self.quality_head = nn.Sequential(nn.Linear(2 * (b + c) + d, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Concept logits `[b concepts]` and quality logit `[b]` of `pixels [b 3 y x]`, RGB in 0..1."""
        if pixels.shape[-2:] != (SIZE, SIZE):
            pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        fine = self.stage1(self.stem(F.pixel_unshuffle(pixels * 2 - 1, 2)))
        middle = self.stage2(fine)
        coarse = self.stage3(middle).mean(dim=(2, 3))
        # Damage shows in the spread of fine features more than in their mean.
        texture = [f(x, dim=(2, 3)) for x in (fine, middle) for f in (torch.mean, torch.std)]
        return self.concept_head(coarse), self.quality_head(torch.cat([*texture, coarse], dim=1))[:, 0]

    def concept_log_probs(self, pixels: Tensor) -> Tensor:
        """Log-probability of each of `concepts`: `[b 3 y x]` in 0..1 to `[b concepts]`."""
        return self(pixels)[0].log_softmax(dim=1)

    def quality(self, pixels: Tensor) -> Tensor:
        """How clean the picture is: 1 for untouched art, less with every damage; `[b 3 y x]` in 0..1 to `[b]`."""
        return self(pixels)[1].sigmoid()

    @classmethod
    def from_folder(cls, path: str | Path) -> Judge:
        """Read `config.json` and `model.safetensors`; the judge comes in evaluation mode, in float32, frozen."""
        folder = Path(path)
        config = json.loads((folder / "config.json").read_text())
        judge = cls(config["concepts"], tuple(config["widths"]))
        weights = load_file(folder / "model.safetensors")
        judge.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
        missing = set(judge.state_dict()) - set(weights)
        if any(not key.endswith("num_batches_tracked") for key in missing):
            raise ValueError(f"{folder} lacks {', '.join(sorted(missing))}")
        return judge.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Write `config.json` and, rounded to float16, `model.safetensors`."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"concepts": self.concepts, "widths": self.widths}
        (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        weights = {
            k: v.half().contiguous() for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")
        }
        save_file(weights, folder / "model.safetensors")
