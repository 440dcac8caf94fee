"""The known truth of the emoji world: what a picture is worth for a prompt, and how annotators vote on it.

The oracle looks at pixels with networks that share nothing with a reward model: the judge (`worlds/judge.py`) reads
which concept a picture shows and how clean it is, a linear reader on the judge's texture statistics tells its style,
and the judge's feature maps tell how near it is to real drawings. For a prompt that names concept c and style s, and a
picture x,

    utility(x) = 3 agreement(log p(c | x), floor -8) + 1.5 agreement(log p(s | x), floor -4)
                 + 2 quality(x) + 2.5 likeness(x, c)

with `agreement(l, floor) = 1 - max(l, floor) / floor`, from 0 (the judge all but excludes it) to 1 (certain), and
`likeness(x, c) = 1 - min(1, distance)`, the distance being that of unit feature maps to the nearest real drawing of c
in any style. A prompt that names no style leaves the style term out. Utilities therefore run from 0 to 9.

Votes follow Thurstone's law: each of 9 annotators perceives `utility(a) - utility(b) + noise` with their own normal
noise of standard deviation 1, and calls it a tie when the size of that is at most 0.25.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dina_lrm.errors import DataError, ShapeError, ValueRangeError
from dina_lrm.types import TensorRecord
from dina_lrm.worlds.judge import Judge

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "style.safetensors"


@dataclass(frozen=True)
class Taste:
    """The weights of the four terms of a utility.

    Attributes:
        concept: of showing what the prompt names.
        style: of being drawn as the prompt asks.
        quality: of being clean.
        likeness: of being like a real drawing of it.
        concept_floor: log-probability below which a concept counts as absent.
        style_floor: log-probability below which a style counts as absent.
    """

    concept: float = 3.0
    style: float = 1.5
    quality: float = 2.0
    likeness: float = 2.5
    concept_floor: float = -8.0
    style_floor: float = -4.0


@dataclass(frozen=True)
class Reading(TensorRecord):
    """What the oracle sees in pictures, before any prompt.

    Attributes:
        concept_log_probs: `[b concepts]`.
        style_log_probs: `[b styles]`.
        quality: `[b]` in 0..1.
        outlook: unit feature maps `[b f]`, half precision.
    """

    concept_log_probs: Tensor
    style_log_probs: Tensor
    quality: Tensor
    outlook: Tensor

    def __len__(self) -> int:
        return len(self.quality)

    def __getitem__(self, index: Tensor | slice) -> Reading:
        return self.map(lambda t: t[index])

    @staticmethod
    def cat(parts: Sequence[Reading]) -> Reading:
        """Join along the batch axis."""
        return Reading(
            torch.cat([p.concept_log_probs for p in parts]),
            torch.cat([p.style_log_probs for p in parts]),
            torch.cat([p.quality for p in parts]),
            torch.cat([p.outlook for p in parts]),
        )


def texture(judge: Judge, pixels: Tensor) -> Tensor:
    """How a picture is drawn, whatever it shows: `[b 3 64 64]` in 0..1 to `[b t]`.

    Means and covariances of the judge's earliest channels over the picture (Gatys et al. 2016), each covariance as its
    signed root, beside means and spreads of later ones: outlines, shading and gloss.
    """
    stem = judge.stem(F.pixel_unshuffle(pixels * 2 - 1, 2))
    fine = judge.stage1(stem)
    middle = judge.stage2(fine)
    return torch.cat([_moments(stem), _moments(fine), middle.mean(dim=(2, 3)), middle.std(dim=(2, 3))], dim=1)


def outlook(judge: Judge, pixels: Tensor) -> Tensor:
    """What is where in a picture: `[b 3 64 64]` in 0..1 to unit vectors `[b f]`.

    Feature maps of three stages of the judge at 8 x 8, 4 x 4 and 4 x 4 places, of unit length at each place (Zhang et
    al. 2018, LPIPS, without learned weights); each stage weighs a third.
    """
    fine = judge.stage1(judge.stem(F.pixel_unshuffle(pixels * 2 - 1, 2)))
    middle = judge.stage2(fine)
    maps = [F.adaptive_avg_pool2d(h, n) for h, n in ((fine, 8), (middle, 4), (judge.stage3(middle), 4))]
    flat = [F.normalize(h, dim=1).flatten(1) / math.sqrt(len(maps) * h.shape[2] * h.shape[3]) for h in maps]
    return torch.cat(flat, dim=1)


def _moments(hidden: Tensor) -> Tensor:
    """Mean, and signed root of the covariance, of channels over places: `[b c y x]` to `[b c + c (c + 1) / 2]`."""
    hidden = hidden.flatten(2)
    mean = hidden.mean(dim=2, keepdim=True)
    covariance = (hidden - mean) @ (hidden - mean).mT / hidden.shape[2]
    row, column = torch.triu_indices(*covariance.shape[1:])
    pairs = covariance[:, row, column]
    return torch.cat([mean[..., 0], pairs.sign() * pairs.abs().sqrt()], dim=1)


class StyleReader(nn.Module):
    """Which of the known styles a picture is drawn in: one linear layer on standardised textures."""

    mean: Tensor
    std: Tensor

    def __init__(self, styles: Sequence[str], width: int) -> None:
        super().__init__()
        self.styles = tuple(styles)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, len(self.styles))

    def forward(self, textures: Tensor) -> Tensor:
        """Log-probabilities `[b styles]` of textures `[b t]`."""
        return self.linear(((textures - self.mean) / self.std).clamp(-6, 6)).log_softmax(dim=1)


class Oracle:
    """What a picture is worth for a prompt: a function of pixels, concept and style alone.

    Args:
        judge: reads concepts and quality, and lends its features.
        style_reader: reads styles.
        drawings: real art by concept, `[k 3 64 64]` uint8.
        taste: weights of the terms.
    """

    def __init__(
        self,
        judge: Judge,
        style_reader: StyleReader,
        drawings: Mapping[str, Tensor],
        taste: Taste | None = None,
    ) -> None:
        self.judge = judge
        self.style_reader = style_reader
        self.drawings = drawings
        self.taste = taste or Taste()
        self._outlooks: dict[str, Tensor] = {}
        self._concept_index = {name: i for i, name in enumerate(judge.concepts)}
        self._style_index: dict[str | None, int] = {name: i for i, name in enumerate(style_reader.styles)}

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles it tells apart."""
        return self.style_reader.styles

    @torch.no_grad()
    def read(self, pixels: Tensor, batch_size: int = 128) -> Reading:
        """Look at pictures `[b 3 64 64]`, RGB in 0..1, some at a time."""
        parts = []
        for part in torch.split(pixels, batch_size):
            logits, worth = self.judge(part)
            styles = self.style_reader(texture(self.judge, part))
            parts.append(Reading(logits.log_softmax(dim=1), styles, worth.sigmoid(), outlook(self.judge, part).half()))
        return Reading.cat(parts)

    def utility(self, reading: Reading, concepts: Sequence[str], styles: Sequence[str | None]) -> Tensor:
        """Worth of each picture for its prompt.

        Args:
            reading: of `b` pictures.
            concepts: what each prompt names, `b` names.
            styles: how it is to be drawn, `b` names; None where the prompt does not say.

        Returns:
            `[b]` float64.

        Raises:
            ShapeError: the counts differ.
            ValueRangeError: a concept or style that the oracle does not know.
        """
        if not len(reading) == len(concepts) == len(styles):
            got = f"{len(concepts)} and {len(styles)}"
            raise ShapeError(f"{len(reading)} pictures need as many concepts and styles, got {got}")
        concept = torch.tensor([self._find(self._concept_index, "concept", name) for name in concepts])
        style = torch.tensor([0 if name is None else self._find(self._style_index, "style", name) for name in styles])
        asked = torch.tensor([name is not None for name in styles])
        taste, each = self.taste, torch.arange(len(reading))
        shown = agreement(reading.concept_log_probs[each, concept].double(), taste.concept_floor)
        drawn = agreement(reading.style_log_probs[each, style].double(), taste.style_floor) * asked
        nearest = [self._distance(reading.outlook[i], name) for i, name in enumerate(concepts)]
        alike = 1 - torch.tensor(nearest, dtype=torch.float64).clamp_max(1)
        quality = reading.quality.double()
        return taste.concept * shown + taste.style * drawn + taste.quality * quality + taste.likeness * alike

    @torch.no_grad()
    def _distance(self, seen: Tensor, concept: str) -> float:
        """From one outlook `[f]` to the nearest real drawing of a concept."""
        if concept not in self._outlooks:
            if concept not in self.drawings:
                raise ValueRangeError(
                    f"the oracle has no drawing of {concept!r}; give it art of every concept it is asked for"
                )
            self._outlooks[concept] = outlook(self.judge, self.drawings[concept].float() / 255).half()
        return (self._outlooks[concept].float() - seen.float()).norm(dim=1).min().item()

    def save(self, folder: str | Path) -> None:
        """Write what the judge's own folder does not hold: taste and style reader."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"styles": list(self.styles), "taste": asdict(self.taste)}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.style_reader.state_dict(), folder / WEIGHTS_FILE)

    @staticmethod
    def from_folder(folder: str | Path, judge: str | Path, drawings: Mapping[str, Tensor]) -> Oracle:
        """Read an oracle.

        Args:
            folder: as `save` wrote it.
            judge: folder of the judge it looks with.
            drawings: real art by concept, `[k 3 64 64]` uint8.

        Returns:
            The oracle, in evaluation mode.

        Raises:
            DataError: the folder is not whole.
        """
        folder = Path(folder)
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
            weights = load_file(folder / WEIGHTS_FILE)
            reader = StyleReader(config["styles"], len(weights["mean"]))
            reader.load_state_dict(weights)
            taste = Taste(**config["taste"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{folder} is no oracle ({error}); it must hold {CONFIG_FILE} and {WEIGHTS_FILE}: fetch it again"
            ) from error
        return Oracle(Judge.from_folder(judge), reader.eval().requires_grad_(False), drawings, taste)

    @staticmethod
    def _find(index: dict[Any, int], what: str, name: str) -> int:
        if name not in index:
            known = ", ".join(map(str, list(index)[:5]))
            raise ValueRangeError(f"the oracle knows no {what} {name!r}; it knows {len(index)}: {known} ...")
        return index[name]


def agreement(log_prob: Tensor, floor: float) -> Tensor:
    """`1 - max(log_prob, floor) / floor`: 1 at certainty, 0 at the floor and below."""
    return 1 - log_prob.clamp_min(floor) / floor


@dataclass(frozen=True)
class Electorate:
    """Annotators who vote by Thurstone's law.

    Attributes:
        num_annotators: votes a pair.
        noise: standard deviation of what each adds to the difference in utility.
        tie_band: perceived differences up to this size are called a tie.
    """

    num_annotators: int = 9
    noise: float = 1.0
    tie_band: float = 0.25

    def vote(self, difference: Tensor, seed: int) -> Tensor:
        """Votes on pairs.

        Args:
            difference: utility of the first less that of the second `[b]`.
            seed: of the annotators' noise.

        Returns:
            Votes for the first, for the second, and ties: `[b 3]` int64, each row adding up to `num_annotators`.
        """
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(difference), self.num_annotators, generator=generator, dtype=torch.float64)
        perceived = difference.double()[:, None] + self.noise * noise
        first, second = perceived > self.tie_band, perceived < -self.tie_band
        return torch.stack([first, second, ~(first | second)], dim=2).sum(dim=1)
