"""Candidates for many prompts, judged by the oracle, voted on, and written as a preference folder.

For each prompt: samples of the generator at several step counts and guidances; real art of the concept in the asked
style and in others; art of near and far concepts; damaged art. Each candidate is what its stored half-precision
latents decode to, so the oracle sees exactly what a reward model is given.

Splits share no concept, neither asked for nor shown. `unseen_style` asks for a style that no other split shows;
`unseen_damage` adds kinds of damage that no other split has to the test prompts.

    python worlds/emoji/style_reader.py
    python worlds/emoji/pool.py
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from diffusers.utils.logging import set_verbosity_error
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, read_art
from prompts import WITH_STYLE, WITHOUT_STYLE, Phrases, canonical, fill, read_phrases

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.data import Candidate, Origin, PairTable, PreferencePair, write_preference_data
from dina_lrm.runtime.files import atomic_write
from dina_lrm.worlds.damage import DAMAGES, damage
from dina_lrm.worlds.emoji import seed_of, split_of
from dina_lrm.worlds.oracle import Electorate, Oracle, Reading

UNSEEN_DAMAGES = ("motion", "posterise", "desaturate", "swirl", "scramble", "smear")
SEEN_DAMAGES = tuple(kind for kind in DAMAGES if kind not in UNSEEN_DAMAGES)
STRENGTHS = (0.25, 0.45, 0.65, 0.9)
MAX_SEQUENCE_LENGTH = 16


@dataclass(frozen=True)
class Cell:
    """One way of asking the generator."""

    steps: int
    guidance: float


CELLS = (Cell(4, 1.0), Cell(4, 2.5), Cell(4, 4.0), Cell(8, 1.0), Cell(8, 2.5), Cell(8, 4.0), Cell(12, 2.5))
BEST_CELLS = (Cell(20, 2.5), Cell(20, 4.0))  # the slow ones: one of them a prompt, in turn
CHUNK = 128


@dataclass(frozen=True)
class SplitPlan:
    """How much of what a split holds; all but `num_prompts` are a prompt's.

    Training has many prompts with few candidates: a model that sees few concepts learns those concepts, not agreement.
    """

    num_prompts: int
    pairs: dict[str, int]
    styles: int = 2
    near: int = 2
    damaged: int = 4
    cells: int = 5


SPLITS = {
    "train": SplitPlan(
        490, {"concept": 4, "style": 1, "damage": 3, "generator": 3, "mixed": 7}, styles=1, near=1, damaged=2, cells=2
    ),
    "validation": SplitPlan(60, {"concept": 4, "style": 1, "damage": 4, "generator": 4, "mixed": 6}, cells=3),
    "test": SplitPlan(80, {"concept": 5, "style": 2, "damage": 7, "generator": 8, "mixed": 10}, cells=7),
    "unseen_style": SplitPlan(50, {"concept": 5, "style": 2, "damage": 4, "generator": 2, "mixed": 5}, cells=1),
    "unseen_damage": SplitPlan(80, {"damage": 9, "mixed": 4}),
}


@dataclass(frozen=True)
class Request:
    """A prompt with its meaning: `style` is that of the right picture, `asked` whether the prompt says so."""

    split: str
    number: int
    prompt: str
    concept: str
    style: str
    asked: bool


@dataclass(frozen=True)
class Picture:
    """How a picture is made; equal recipes are one picture, stored once.

    A damaged one has `damage`; a generated one has `cell` and `prompt`.
    """

    concept: str
    style: str
    damage: str = ""
    strength: float = 0.0
    cell: Cell | None = None
    prompt: str = ""


@dataclass(frozen=True)
class Entry:
    """A picture in the running for a request."""

    request: Request
    picture: Picture
    role: str  # right, style, near, far, damaged, unseen_damaged or generator


class Art:
    """The art tables, by concept and style."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.pixels = {(row["concept"], row["style"]): row["pixels"] for row in rows}
        self.group = {row["concept"]: row["group"] for row in rows}
        self.subgroup = {row["concept"]: row["subgroup"] for row in rows}
        self.drawn: dict[tuple[str, str], list[str]] = defaultdict(list)  # concepts by split and style
        for concept, style in sorted(self.pixels):
            self.drawn[split_of(concept), style].append(concept)

    def styles(self, concept: str) -> list[str]:
        """The training styles that draw a concept."""
        return [style for style in TRAINED_STYLES if (concept, style) in self.pixels]

    def drawings(self) -> dict[str, Tensor]:
        """All pictures of each concept, `[k 3 64 64]` uint8."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for (concept, _), pixels in self.pixels.items():
            found[concept].append(pixels)
        return {concept: torch.stack(pictures) for concept, pictures in found.items()}


def phrase(phrases: Phrases, style: str, generator: torch.Generator) -> tuple[str, bool]:
    """Half canonical captions, a third other wordings with a style, the rest without; and whether it names a style."""
    share = float(torch.rand((), generator=generator))
    templates = ("{name}, {style} style",) if share < 0.5 else WITH_STYLE if share < 0.85 else WITHOUT_STYLE
    template = templates[int(torch.randint(len(templates), (), generator=generator))]
    return fill(template, phrases, style, generator), "{style}" in template


def draw_requests(split: str, art: Art, words: dict[str, Phrases]) -> list[Request]:
    """The prompts of train, validation or test: one a concept, concepts without near neighbours left out."""
    rng = np.random.default_rng(seed_of("requests", split))
    concepts = [concept for concept in sorted(art.group) if split_of(concept) == split]
    taken: dict[str, Request] = {}
    for concept in rng.permutation(concepts).tolist():
        style = str(rng.choice(art.styles(concept)))
        prompt, asked = phrase(words[concept], style, torch.Generator().manual_seed(seed_of("phrase", concept)))
        if prompt not in taken and neighbours(art, concept, style)[0]:
            taken[prompt] = Request(split, len(taken), prompt, concept, style, asked)
        if len(taken) == SPLITS[split].num_prompts:
            break
    return list(taken.values())


def in_unseen_style(request: Request) -> Request:
    """The same concept, asked for in the style that nobody has seen."""
    prompt = canonical(request.concept, HELD_OUT_STYLE)
    return Request("unseen_style", request.number, prompt, request.concept, HELD_OUT_STYLE, True)


def neighbours(art: Art, concept: str, style: str) -> tuple[list[str], list[str]]:
    """Concepts of the same split in the same style: of the same subgroup, and of another group."""
    others = [c for c in art.drawn[split_of(concept), style] if c != concept]
    key = (art.group[concept], art.subgroup[concept])
    near = [c for c in others if (art.group[c], art.subgroup[c]) == key]
    return near, [c for c in others if art.group[c] != art.group[concept]]


def real_entries(request: Request, art: Art, rng: np.random.Generator) -> Iterator[Entry]:
    """Real art: the right picture, the concept in other styles, near concepts and a far one."""
    plan, concept, style = SPLITS[request.split], request.concept, request.style
    yield Entry(request, Picture(concept, style), "right")
    other_styles = [s for s in art.styles(concept) if s != style]
    for other in rng.permutation(other_styles)[: plan.styles].tolist():
        yield Entry(request, Picture(concept, other), "style")
    near, far = neighbours(art, concept, style)
    for other in rng.permutation(near)[: plan.near].tolist():
        yield Entry(request, Picture(other, style), "near")
    yield Entry(request, Picture(str(rng.choice(far)), style), "far")


def damaged_entries(request: Request, kinds: Sequence[str], role: str, rng: np.random.Generator) -> Iterator[Entry]:
    """The right picture, damaged by different kinds at different strengths."""
    strengths = rng.permutation(STRENGTHS)[: SPLITS[request.split].damaged]
    for kind, strength in zip(rng.permutation(kinds).tolist(), strengths.tolist(), strict=False):
        yield Entry(request, Picture(request.concept, request.style, kind, strength), role)


def plan_entries(request: Request, art: Art) -> list[Entry]:
    """All candidates of a request."""
    rng = np.random.default_rng(seed_of("entries", request.prompt))
    entries = [*real_entries(request, art, rng), *damaged_entries(request, SEEN_DAMAGES, "damaged", rng)]
    cells = [CELLS[(request.number + i) % len(CELLS)] for i in range(SPLITS[request.split].cells)]
    for cell in (*cells, BEST_CELLS[request.number % 2]):
        picture = Picture(request.concept, request.style, cell=cell, prompt=request.prompt)
        entries.append(Entry(request, picture, "generator"))
    if request.split == "test":
        entries += damaged_entries(request, UNSEEN_DAMAGES, "unseen_damaged", rng)
    return entries


def render(picture: Picture, art: Art) -> Tensor:
    """Pixels `[3 64 64]` in 0..1 of a real or damaged picture."""
    pixels = art.pixels[picture.concept, picture.style].float() / 255
    if not picture.damage:
        return pixels
    return damage(pixels, picture.damage, picture.strength, seed_of("damage", picture) % 2**31)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Standardised half-precision latents (posterior mode) of `[b 3 y x]` in 0..1."""
    latents = torch.cat([vae.encode(part * 2 - 1).latent_dist.mode() for part in pixels.split(64)])
    return ((latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).half()


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels `[b 3 y x]` in 0..1, rounded to 8 bits, of standardised half-precision latents."""
    raw = latents.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    pixels = torch.cat([vae.decode(part).sample for part in raw.split(64)]) / 2 + 0.5
    return pixels.clamp(0, 1).mul(255).round() / 255


@torch.no_grad()
def generate(pipeline: StableDiffusion3Pipeline, pictures: Sequence[Picture], cell: Cell) -> Tensor:
    """Half-precision latents of generated pictures, all of one cell; each starts from noise of its own seed."""
    generators = [torch.Generator().manual_seed(seed_of("noise", picture)) for picture in pictures]
    done = pipeline(
        [picture.prompt for picture in pictures],
        num_inference_steps=cell.steps,
        guidance_scale=cell.guidance,
        latents=torch.stack([torch.randn(16, 8, 8, generator=generator) for generator in generators]),
        height=64,
        width=64,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    )
    return done.images.half()


class Studio:
    """Makes pictures, and keeps what it made under keys that tell all that each depends on.

    A run that was cut off therefore goes on where it stopped, and one with another generator redoes only its samples.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline, art: Art, cache: Path) -> None:
        self.pipeline, self.art, self.cache = pipeline, art, cache
        self._of_vae = fingerprint(pipeline.vae)
        self._of_generator = fingerprint(pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        for path in sorted(cache.glob("*.safetensors")):
            self._keep(load_file(path))

    def make(self, pictures: Sequence[Picture], say: Callable[[str], None]) -> tuple[Tensor, Tensor]:
        """Half-precision latents `[n c h w]` and what they decode to, `[n 3 64 64]` uint8, in the order given."""
        by_cell: dict[Cell | None, list[Picture]] = defaultdict(list)
        for picture in pictures:
            by_cell[picture.cell].append(picture)
        for cell, wanted in by_cell.items():
            missing = [picture for picture in wanted if self._key(picture) not in self._made]
            for start in range(0, len(missing), CHUNK):
                self._make_chunk(cell, missing[start : start + CHUNK])
            say(f"{len(wanted)} pictures, {len(missing)} of them new: {cell or 'real and damaged'}")
        latents, pixels = zip(*(self._made[self._key(picture)] for picture in pictures), strict=True)
        return torch.stack(latents), torch.stack(pixels)

    def _key(self, picture: Picture) -> int:
        return seed_of(self._of_vae, self._of_generator if picture.cell else "", picture)

    def _make_chunk(self, cell: Cell | None, pictures: Sequence[Picture]) -> None:
        if cell is None:
            latents = encode(self.pipeline.vae, torch.stack([render(picture, self.art) for picture in pictures]))
        else:
            latents = generate(self.pipeline, pictures, cell)
        keys = torch.tensor([self._key(picture) for picture in pictures])
        pixels = decode(self.pipeline.vae, latents).mul(255).round().to(torch.uint8)
        made = {"keys": keys, "latents": latents, "pixels": pixels}
        with atomic_write(self.cache / f"{seed_of(*keys.tolist()):012x}.safetensors") as file:
            file.write(save(made))
        self._keep(made)

    def _keep(self, made: dict[str, Tensor]) -> None:
        for key, latents, pixels in zip(made["keys"].tolist(), made["latents"], made["pixels"], strict=True):
            self._made[key] = latents, pixels


def fingerprint(*modules: torch.nn.Module) -> str:
    """A hash of weights, as they are in half precision."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode() + value.detach().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_webp(pixels: Tensor) -> bytes:
    """A preview of `[3 y x]` uint8."""
    out = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(out, "WEBP", quality=60, method=6)
    return out.getvalue()


def origin_of(entry: Entry) -> Origin:
    """What a reader of the folder is told of an entry."""
    picture = entry.picture
    if picture.cell is not None:
        detail = f"{picture.cell.steps} steps, guidance {picture.cell.guidance:g}"
        return Origin("generator", picture.concept, picture.style, detail)
    if picture.damage:
        return Origin("damaged", picture.concept, picture.style, f"{picture.damage} {picture.strength:g}")
    return Origin("real", picture.concept, picture.style, entry.role)


def combinations_by_kind(entries: Sequence[Entry], split: str) -> dict[str, list[tuple[int, int]]]:
    """The comparisons that a split allows among the candidates of one request, as places in `entries`."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        places[entry.role].append(place)
    right, styled, made = places["right"], places["style"], places["generator"]
    wrong = places["near"] + places["far"]
    if split == "unseen_damage":
        hurt = places["unseen_damaged"]
        mixed = itertools.product(made, hurt)
    else:
        hurt = places["damaged"]
        mixed = itertools.product(made, right + styled + wrong + hurt)
    return {
        "concept": list(itertools.product(right + styled, wrong)),
        "style": list(itertools.product(right, styled)) if entries[0].request.asked else [],
        "damage": [*itertools.product(right, hurt), *itertools.combinations(hurt, 2)],
        "generator": list(itertools.combinations(made, 2)),
        "mixed": list(mixed),
    }


def vote(
    entries: Sequence[Entry],
    ids: Sequence[str],
    utility: np.ndarray,
    split: str,
    electorate: Electorate,
    numbers: dict[str, int],
) -> list[PreferencePair]:
    """The labelled pairs of one request in one split: comparisons drawn by kind, then put to the vote."""
    prompt = entries[0].request.prompt
    rng = np.random.default_rng(seed_of("pairs", split, prompt))
    allowed = combinations_by_kind(entries, split)
    drawn: list[tuple[str, int, int]] = []
    for kind, number in numbers.items():
        for place in rng.permutation(len(allowed[kind]))[:number].tolist():
            first, second = allowed[kind][place]
            drawn.append((kind, second, first) if rng.random() < 0.5 else (kind, first, second))
    difference = torch.tensor([utility[first] - utility[second] for _, first, second in drawn])
    votes = electorate.vote(difference, seed_of("votes", split, prompt)).tolist()
    out = []
    for (kind, first, second), (for_first, for_second, tied) in zip(drawn, votes, strict=True):
        # At equal votes the side is that of the draw, which is random.
        if for_first < for_second:
            first, second, for_first, for_second = second, first, for_second, for_first
        out.append(PreferencePair(prompt, ids[first], ids[second], for_first, for_second, tied, kind))
    return out


def describe(table: PairTable) -> dict[str, float]:
    """What any model could reach on a split: the noise-free order of the oracle against the voted labels."""
    decided = table.votes_chosen != table.votes_rejected
    agrees = table.chosen_utility > table.rejected_utility
    p = np.clip(table.target[decided], 1e-9, 1 - 1e-9)
    return {
        "pairs": len(table),
        "ceiling": round(float(agrees[decided].mean()), 4),
        "equal_votes": int((~decided).sum()),
        "mean_tied_votes": round(float(table.votes_tied.mean()), 3),
        "unanimous": round(float((p > 1 - 1e-6).mean()), 3),
        "mean_gap": round(float(np.abs(table.chosen_utility - table.rejected_utility).mean()), 3),
    }


def plan_everything(scale: float) -> tuple[Art, list[list[Entry]]]:
    """The art, and the candidates of each request; a scale below 1 makes a draft."""
    rows = read_art((*TRAINED_STYLES, HELD_OUT_STYLE))
    art = Art(rows)
    words = read_phrases(row for row in rows if row["style"] != HELD_OUT_STYLE)
    requests = {}
    for split in ("train", "validation", "test"):
        drawn = draw_requests(split, art, words)
        requests[split] = drawn[: max(2, round(scale * len(drawn)))]
    wanted = round(scale * SPLITS["unseen_style"].num_prompts)
    possible = [r for r in map(in_unseen_style, requests["test"]) if neighbours(art, r.concept, r.style)[0]]
    requests["unseen_style"] = possible[: max(2, wanted)]
    return art, [plan_entries(r, art) for drawn in requests.values() for r in drawn]


def build(pipeline_folder: Path, judge: Path, oracle_folder: Path, out: Path, cache_folder: Path, scale: float) -> None:
    """Make the preference folder."""
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", flush=True)

    set_verbosity_error()  # the pipeline's empty T5 says for each batch that it was cut short
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    art, pools = plan_everything(scale)
    oracle, electorate = Oracle.from_folder(oracle_folder, judge, art.drawings()), Electorate()
    pictures = list(dict.fromkeys(entry.picture for pool in pools for entry in pool))
    say(f"{sum(map(len, pools))} candidates of {len(pools)} prompts, {len(pictures)} different pictures")
    latents, pixels = Studio(pipeline, art, cache_folder).make(pictures, say)
    reading = oracle.read(pixels.float() / 255)
    say("read by the oracle")

    row_of = {picture: row for row, picture in enumerate(pictures)}
    previews = [to_webp(p) for p in pixels]
    candidates: list[Candidate] = []
    pairs: dict[str, list[PreferencePair]] = {split: [] for split in SPLITS}
    for pool in pools:
        request, rows = pool[0].request, [row_of[entry.picture] for entry in pool]
        utility = worth(oracle, reading[torch.tensor(rows)], request)
        ids = [f"{request.split}-{request.number:03d}-{k:02d}" for k in range(len(pool))]
        for entry, row, name, value in zip(pool, rows, ids, utility.tolist(), strict=True):
            candidates.append(Candidate(name, request.prompt, row, origin_of(entry), previews[row], value))
        for split in (request.split, "unseen_damage") if request.split == "test" else (request.split,):
            pairs[split] += vote(pool, ids, utility, split, electorate, SPLITS[split].pairs)
    about = {
        "preferences": "programmatic: votes are simulated, no human took part",
        "oracle": json.loads((oracle_folder / "config.json").read_text()),
        "electorate": vars(electorate),
        "unseen_style": HELD_OUT_STYLE,
        "unseen_damages": list(UNSEEN_DAMAGES),
    }
    backbone = {"scaling_factor": pipeline.vae.config.scaling_factor, "shift_factor": pipeline.vae.config.shift_factor}
    data = write_preference_data(out, candidates, latents, pairs, "emoji-preferences", backbone, about)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"{len(candidates)} candidates, {size / 1e6:.1f} MB in {out}")
    for split in data.splits:
        say(f"{split}: {json.dumps(describe(data.pairs(split)))}")


def worth(oracle: Oracle, reading: Reading, request: Request) -> np.ndarray:
    """Utilities of the candidates of one request."""
    concepts, styles = [request.concept] * len(reading), [request.style if request.asked else None] * len(reading)
    return oracle.utility(reading, concepts, styles).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pipeline")
    parser.add_argument("--judge", type=Path, default=ROOT / "judge")
    parser.add_argument("--oracle", type=Path, default=ROOT / "oracle")
    parser.add_argument("--out", type=Path, default=ROOT / "preferences")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "pool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the prompts, for a draft")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    build(arguments.pipeline, arguments.judge, arguments.oracle, arguments.out, arguments.cache, arguments.scale)
