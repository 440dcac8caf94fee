"""More training prompts for the pictures that are there: other words, other styles, other neighbours.

A picture is worth something for any prompt, not only for the one it was made for. Each training concept is asked for
again in other words and other styles; real art, damaged art and samples that are stored already are put forward, the
oracle says what each is worth for the new prompt, and the electorate votes. No latents are added, so the folder grows
by its tables alone. Held-out splits stay as they are, to the byte.

    python worlds/emoji/pool.py
    python worlds/emoji/reask.py
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from common import HELD_OUT_STYLE, ROOT, TRAINED_STYLES, read_art
from pool import Art, Entry, Picture, Request, decode, phrase, seed_of, split_of, vote, worth
from prompts import Phrases, read_phrases

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.data import Candidate, Origin, PreferenceData, PreferencePair, extend_preference_data
from dina_lrm.worlds.oracle import Electorate, Oracle

ROUNDS = 4  # new prompts a concept
# More comparisons of styles than `pool.py` makes: the picture that is right for one of these prompts is wrong for another.
PAIRS = {"concept": 4, "style": 3, "damage": 3, "generator": 2, "mixed": 6}
TABLE = "reasked"


@dataclass(frozen=True)
class Stored:
    """A picture of the training split: its row of the latents, and where it came from."""

    row: int
    origin: Origin


class Shelf:
    """The training pictures by what they show."""

    def __init__(self, stored: Sequence[Stored], art: Art) -> None:
        self.art = art
        self.real: dict[str, dict[str, Stored]] = defaultdict(dict)  # by concept, then style
        self.damaged: dict[str, list[Stored]] = defaultdict(list)
        self.made: dict[str, list[Stored]] = defaultdict(list)
        for one in stored:
            concept = one.origin.concept
            if one.origin.kind == "real":
                self.real[concept][one.origin.style] = one
            else:
                (self.damaged if one.origin.kind == "damaged" else self.made)[concept].append(one)
        self.by_subgroup: dict[tuple[str, str], list[str]] = defaultdict(list)
        for concept in sorted(self.real):
            self.by_subgroup[art.group[concept], art.subgroup[concept]].append(concept)

    def candidates(self, request: Request, rng: np.random.Generator) -> list[tuple[Stored, str]]:
        """Pictures to put forward for a prompt, each with its role; empty where the asked one is not stored."""
        concept, style = request.concept, request.style
        drawings = self.real.get(concept, {})
        if style not in drawings:
            return []
        found = [(drawings[style], "right")]
        found += [(drawings[other], "style") for other in _some(sorted(drawings.keys() - {style}), 2, rng)]
        key = (self.art.group[concept], self.art.subgroup[concept])
        near = [other for other in self.by_subgroup[key] if other != concept]
        far = [other for other in sorted(self.real) if self.art.group[other] != key[0]]
        found += [(self._drawing(other, style, rng), "near") for other in _some(near, 1, rng)]
        found += [(self._drawing(other, style, rng), "far") for other in _some(far, 1, rng)]
        found += [(one, "damaged") for one in _some(self.damaged.get(concept, []), 2, rng)]
        found += [(one, "generator") for one in _some(self.made.get(concept, []), 2, rng)]
        return found

    def _drawing(self, concept: str, style: str, rng: np.random.Generator) -> Stored:
        """In the asked style where there is one: then the concept alone tells it apart."""
        drawings = self.real.get(concept, {})
        return drawings[style] if style in drawings else drawings[str(rng.choice(sorted(drawings)))]


def _some(pool: Sequence, count: int, rng: np.random.Generator) -> list:
    return [pool[place] for place in rng.permutation(len(pool))[:count]]


def read_stored(data: PreferenceData) -> list[Stored]:
    """The pictures that training prompts were given, each once."""
    found: dict[int, Stored] = {}
    for row in data.candidates.select(["prompt", "candidate", "origin", "latents_row"]).to_pylist():
        if row["candidate"].startswith("train-"):
            origin = Origin.from_row(row["origin"])
            assert origin is not None and split_of(origin.concept) == "train"
            found.setdefault(row["latents_row"], Stored(row["latents_row"], origin))
    return list(found.values())


def draw_requests(art: Art, words: dict[str, Phrases], known: set[str]) -> list[Request]:
    """New prompts for training concepts, in rounds; one that any split knows is not asked again."""
    requests: list[Request] = []
    concepts = [concept for concept in sorted(art.group) if split_of(concept) == "train"]
    for turn in range(ROUNDS):
        for concept in concepts:
            generator = torch.Generator().manual_seed(seed_of("reask", concept, turn))
            style = art.styles(concept)[turn % len(art.styles(concept))]
            prompt, asked = phrase(words[concept], style, generator)
            if prompt not in known:
                known.add(prompt)
                requests.append(Request("train", len(requests), prompt, concept, style, asked))
    return requests


def build(folder: Path, pipeline: Path, judge: Path, oracle_folder: Path) -> None:
    """Extend the preference folder in place; it is replaced whole or not at all."""
    data = PreferenceData.open(folder)
    if any(name.startswith(f"{TABLE}-") for name in data.candidates["candidate"].to_pylist()):
        sys.exit(f"{folder} has been asked again already; make it afresh with pool.py first")
    rows = read_art((*TRAINED_STYLES, HELD_OUT_STYLE))
    art = Art(rows)
    words = read_phrases(row for row in rows if row["style"] != HELD_OUT_STYLE)
    stored = read_stored(data)
    place = {one.row: i for i, one in enumerate(stored)}
    vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae", torch_dtype=torch.float32)
    pixels: Tensor = decode(vae, data.latents([one.row for one in stored]))
    oracle, electorate = Oracle.from_folder(oracle_folder, judge, art.drawings()), Electorate()
    reading = oracle.read(pixels)
    print(f"{len(stored)} training pictures read", flush=True)

    shelf = Shelf(stored, art)
    candidates: list[Candidate] = []
    pairs: list[PreferencePair] = []
    known = set(data.candidates["prompt"].to_pylist())
    for request in draw_requests(art, words, known):
        chosen = shelf.candidates(request, np.random.default_rng(seed_of("shelf", request.prompt)))
        if not chosen:
            continue
        utility = worth(oracle, reading[torch.tensor([place[one.row] for one, _ in chosen])], request)
        ids = [f"{TABLE}-{request.number:04d}-{k:02d}" for k in range(len(chosen))]
        entries = [Entry(request, Picture(one.origin.concept, one.origin.style), role) for one, role in chosen]
        for name, (one, role), value in zip(ids, chosen, utility.tolist(), strict=True):
            detail = role if one.origin.kind == "real" else one.origin.detail
            origin = Origin(one.origin.kind, one.origin.concept, one.origin.style, detail)
            candidates.append(Candidate(name, request.prompt, one.row, origin, None, value))
        pairs += vote(entries, ids, utility, "train", electorate, PAIRS)
    extended = extend_preference_data(folder, TABLE, candidates, {"train": pairs})
    print(f"{len({c.prompt for c in candidates})} new prompts, {len(pairs)} new pairs")
    print(f"train: {len(extended.pairs('train'))} pairs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preferences", type=Path, default=ROOT / "preferences")
    parser.add_argument("--pipeline", type=Path, default=ROOT / "pipeline")
    parser.add_argument("--judge", type=Path, default=ROOT / "judge")
    parser.add_argument("--oracle", type=Path, default=ROOT / "oracle")
    arguments = parser.parse_args()
    build(arguments.preferences, arguments.pipeline, arguments.judge, arguments.oracle)
