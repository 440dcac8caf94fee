"""A reward that reads pixels, with a text tower of its own: what the latent reward is compared with.

`u = quality(f) + w <e, t> + agreement(e * t)` with f the statistics of a picture (fixed filters at four scales and means and
spreads of a convolutional trunk), e its embedding and t the prompt's. Words are read as themselves and as hashed groups of
letters, so a word that was never seen is read too. `python -m studies.alignment.rival` trains both sizes and measures them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dina_lrm.config import Config, parse_config
from dina_lrm.errors import CheckpointError, ShapeError
from dina_lrm.runtime.files import atomic_folder

__all__ = ["SIZES", "Rival", "RivalConfig", "is_rival", "texture"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SCALES, FILTERS, PATCH = 4, 3, 4
NUM_TEXTURE = 3 + 3 + 1 + SCALES * FILTERS * 3 * 3
MAX_WORDS = 23
SMALLEST_SIDE = 32


class RivalConfig(Config):
    """The network.

    Attributes:
        widths: channels of the trunk at a 4th, 8th, 16th and 32nd of the picture's side.
        texture_filters: learned filters whose rectified answers the trunk starts from, beside the pixels.
        text_width: of the text tower and of the embeddings.
        text_layers: of the text tower.
        buckets: of hashed groups of letters.
        hidden: width of the readers.
        dropout: in the text tower.
        reader_dropout: in the readers of statistics and agreement.
    """

    widths: tuple[int, ...] = (48, 96, 192, 384)
    texture_filters: int = 24
    text_width: int = 256
    text_layers: int = 2
    buckets: int = 4096
    hidden: int = 512
    dropout: float = 0.1
    reader_dropout: float = 0.4


# About as many parameters as the latent reward's kept blocks, and three times as many.
SIZES = {
    "small": RivalConfig(),
    "large": RivalConfig(widths=(64, 128, 320, 720), text_width=384, text_layers=4, buckets=7168, hidden=640),
}


def split_words(prompt: str) -> list[str]:
    """Lower-case words of a prompt, at most `MAX_WORDS`."""
    return "".join(c if c.isalnum() or c in "'’-" else " " for c in prompt.lower()).split()[:MAX_WORDS]


@cache
def letter_groups(word: str, buckets: int) -> tuple[int, ...]:
    """Buckets, from 1, of all groups of 3 to 6 letters of a word between its marks (Bojanowski et al. 2017)."""
    marked = f"<{word}>"
    groups = [marked[i : i + n] for n in (3, 4, 5, 6) for i in range(len(marked) - n + 1)]
    return tuple(zlib.crc32(group.encode()) % buckets + 1 for group in groups)


class TextTower(nn.Module):
    """Prompts to embeddings `[u d]`: a small transformer over words."""

    def __init__(self, config: RivalConfig, words: Sequence[str]) -> None:
        super().__init__()
        width = config.text_width
        self.buckets, self.places = config.buckets, {word: i + 1 for i, word in enumerate(words)}
        self.words = nn.Embedding(len(words) + 1, width, padding_idx=0)
        self.groups = nn.EmbeddingBag(config.buckets + 1, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        # Small: groups that no training word has must say nothing.
        nn.init.normal_(self.groups.weight, std=0.3 * width**-0.5)
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        heads = max(1, width // 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.text_layers)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, prompts: Sequence[str], generator: torch.Generator | None = None) -> Tensor:
        """Unit embeddings `[u d]`; with a generator, words are forgotten at random, as unknown ones are."""
        found = [split_words(prompt) for prompt in prompts]
        longest = max(1, *(len(words) for words in found))
        ids = torch.zeros(len(found), longest, dtype=torch.int64)
        padding = torch.ones(len(found), longest + 1, dtype=torch.bool)
        padding[:, 0] = False
        flat, offsets = [], []
        for row, words in enumerate(found):
            padding[row, 1 : 1 + len(words)] = False
            for place in range(longest):
                offsets.append(len(flat))
                word = words[place] if place < len(words) else None
                flat += [0] if word is None else letter_groups(word, self.buckets)
                ids[row, place] = 0 if word is None else self.places.get(word, 0)
        device = self.summary.device
        if generator is not None:
            ids = ids * (torch.rand(ids.shape, generator=generator) > 0.3)
        groups = self.groups(torch.tensor(flat, device=device), torch.tensor(offsets, device=device))
        tokens = self.words(ids.to(device)) + groups.view(len(found), longest, -1)
        if generator is not None:
            tokens = tokens * (torch.rand(ids.shape, generator=generator) > 0.15).unsqueeze(-1).to(device)
        tokens = tokens * self.gain + self.positions[:longest]
        tokens = torch.cat([self.summary.expand(len(found), 1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=padding.to(device))
        return F.normalize(self.out(self.norm(tokens[:, 0])), dim=-1)


class Block(nn.Module):
    """Two convolutions beside the identity (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(width, width), nn.BatchNorm2d(width)
        self.second, self.second_norm = _convolution(width, width), nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(maps)))
        return F.relu(maps + self.second_norm(self.second(inner)))


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


class Trunk(nn.Module):
    """Pixels in 0..1 to maps of every stage. It starts at a 4th of the side and drops no pixel on the way there."""

    def __init__(self, config: RivalConfig) -> None:
        super().__init__()
        widths, filters = config.widths, config.texture_filters
        self.texture = nn.Conv2d(3, filters, 5, 2, 2)
        stem = _convolution(3 * PATCH**2 + 2 * filters, widths[0])
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.stages = nn.ModuleList([Block(widths[0])])
        for before, after in zip(widths, widths[1:], strict=False):
            down = nn.Sequential(_convolution(before, after, 2), nn.BatchNorm2d(after), nn.ReLU())
            self.stages.append(nn.Sequential(down, Block(after)))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        signed = pixels * 2 - 1
        energy = self.texture(signed).abs()
        start = [F.pixel_unshuffle(signed, PATCH), F.avg_pool2d(energy, 2), F.max_pool2d(energy, 2)]
        maps = [self.stem(torch.cat(start, dim=1).contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def texture(pixels: Tensor) -> Tensor:
    """Statistics of pictures that nothing learned, `[b NUM_TEXTURE]`: colours, and how strong edges are at four scales."""
    white = torch.sigmoid((pixels.amin(dim=1) - 0.95) * 60).mean(dim=(1, 2))
    found = [pixels.mean(dim=(2, 3)), (pixels.var(dim=(2, 3)) + 1e-3).log(), white[:, None]]
    red, green, blue = pixels.unbind(dim=1)
    maps = torch.stack([pixels.mean(dim=1), red - green, blue - green], dim=1)
    for _ in range(SCALES):
        across, down = maps[..., 1:] - maps[..., :-1], maps[..., 1:, :] - maps[..., :-1, :]
        bend = across[:, :, 1:-1, :-1] - across[:, :, 1:-1, 1:] + down[:, :, :-1, 1:-1] - down[:, :, 1:, 1:-1]
        for answer in (across, down, bend):
            size = answer.abs()
            found += [
                (size.mean(dim=(2, 3)) + 1e-3).log(),
                (answer.square().mean(dim=(2, 3)) + 1e-5).log(),
                (size + 1e-3).sqrt().mean(dim=(2, 3)).log(),
            ]
        maps = F.avg_pool2d(maps, 2)
    return torch.cat(found, dim=1)


def _statistics(maps: Tensor) -> Tensor:
    """Mean and logarithm of the variance of every channel `[b 2c]`."""
    return torch.cat([maps.mean(dim=(2, 3)), (maps.var(dim=(2, 3), unbiased=False) + 1e-3).log()], dim=1)


def _reader(before: int, hidden: int, after: int, dropout: float, silent: bool) -> nn.Sequential:
    last = nn.Linear(hidden, after)
    if silent:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(before, hidden), nn.GELU(), nn.Dropout(dropout), last)


class Rival(nn.Module):
    """Pixels and prompts to utility.

    Attributes:
        config: of the network.
        words: that have embeddings of their own.
    """

    def __init__(self, config: RivalConfig, words: Sequence[str]) -> None:
        """Args:
        config: of the network.
        words: of the training prompts, each once.
        """
        super().__init__()
        self.config, self.words = config, tuple(words)
        self.trunk = Trunk(config).to(memory_format=torch.channels_last)
        self.text = TextTower(config, words)
        width, dropout = config.text_width, config.reader_dropout
        features = NUM_TEXTURE + 2 * (config.widths[0] + sum(config.widths))
        self.standardise = nn.BatchNorm1d(features, affine=False)
        self.embed = _reader(features, config.hidden, width, dropout / 2, silent=False)
        self.texture_quality = _reader(NUM_TEXTURE, 256, 1, dropout, silent=True)
        self.quality = _reader(features, config.hidden, 1, dropout, silent=True)
        self.agreement = _reader(width, config.hidden, 1, dropout, silent=True)
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.log_scale = nn.Parameter(torch.tensor(0.26))  # tenths of the logarithm: Adam's steps are too small for it
        self._known: dict[str, Tensor] = {}

    def forward(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Utility of each picture under its prompt, differentiable in the pixels.

        Args:
            pixels: `[b 3 y x]` in 0..1, sides multiples of 4 and of 32 at least.
            prompts: one a picture.

        Returns:
            `[b]`.

        Raises:
            ShapeError: pictures of another shape, or not one prompt a picture.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(s % PATCH or s < SMALLEST_SIDE for s in pixels.shape[2:]):
            raise ShapeError(
                f"pixels must be [b 3 y x] with sides that are multiples of {PATCH} and {SMALLEST_SIDE} at least, "
                f"got {list(pixels.shape)}; resize the pictures"
            )
        if len(prompts) != len(pixels):
            raise ShapeError(f"{len(pixels)} pictures need as many prompts, got {len(prompts)}")
        return self.read(pixels, self.remembered(prompts))

    def read(self, pixels: Tensor, prompts: Tensor) -> Tensor:
        """Utility of each picture under an embedded prompt `[b d]`."""
        features = self.standardised(self.features(pixels))
        return self.utility(features, self.embed_pictures(features), prompts)

    @torch.no_grad()
    def remembered(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts `[b d]`, each computed once: a latent reward's prompts are encoded once too."""
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if unknown:
            self._known.update(zip(unknown, self.text(unknown), strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])

    def train(self, mode: bool = True) -> Self:
        """Between training and being asked; what was known of prompts may have changed."""
        self._known.clear()
        return super().train(mode)

    def features(self, pixels: Tensor) -> Tensor:
        """Statistics of pictures `[b f]`."""
        return torch.cat([texture(pixels), *map(_statistics, self.trunk(pixels))], dim=1)

    def standardised(self, features: Tensor) -> Tensor:
        """What the readers take `[b f]`."""
        return self.standardise(features).clamp(-5, 5)

    def embed_pictures(self, features: Tensor) -> Tensor:
        """Unit embeddings `[b d]` of standardised features."""
        return F.normalize(self.embed(features), dim=-1)

    def utility(self, features: Tensor, pictures: Tensor, prompts: Tensor) -> Tensor:
        """`[b]`, from standardised features `[b f]`, embeddings of the same pictures and of their prompts `[b d]`."""
        product = pictures * prompts
        quality = self.texture_quality(features[:, :NUM_TEXTURE]) + self.quality(features)
        agreement = self.agreement(product * product.shape[1] ** 0.5)
        return (quality + agreement)[:, 0] + self.weight * product.sum(dim=1)

    def save(self, folder: Path | str) -> None:
        """Write the folder, whole or not at all."""
        told = {"kind": "rival", "config": self.config.model_dump(mode="json"), "words": list(self.words)}
        with atomic_folder(folder) as staged:
            (staged / CONFIG_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            weights = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
            (staged / WEIGHTS_FILE).write_bytes(save(weights))

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """A saved rival, ready to be asked: without dropout, its weights frozen.

        Raises:
            CheckpointError: no rival lies there whole.
        """
        folder = Path(folder)
        try:
            told = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            rival = cls(parse_config(RivalConfig, told["config"], str(folder / CONFIG_FILE)), told["words"])
            rival.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds no whole rival ({error}); train it again") from error
        return rival.eval().requires_grad_(False)


def is_rival(folder: Path | str) -> bool:
    """Whether a rival was saved there."""
    return (Path(folder) / WEIGHTS_FILE).is_file()


if __name__ == "__main__":
    from studies.alignment.rival_report import main

    main()
