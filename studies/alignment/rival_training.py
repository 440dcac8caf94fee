"""Train the pixel rivals, both sizes, on a preference folder.

First trunk and text tower learn which caption belongs to which picture, on real art of the training concepts and on training
candidates. Then the trunk rests: its statistics are kept, and readers and text tower learn the votes, with the captions beside
them. The weights that order the validation pairs best are kept.

    python -m studies.alignment.rival --out runs/study-alignment
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from dina_lrm.backbones import Backbone, load_backbone
from dina_lrm.data import PreferenceData
from dina_lrm.demo.settings import FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.errors import WorkError
from dina_lrm.evals import SplitView
from dina_lrm.metrics import pair_credit
from dina_lrm.preference import Thurstone, nll
from dina_lrm.runtime.ema import Ema
from dina_lrm.runtime.metrics_log import MetricsLog
from dina_lrm.runtime.schedule import cosine
from dina_lrm.worlds.locate import emoji_root
from studies.alignment.rival import SIZES, Rival, RivalConfig, is_rival
from studies.alignment.rival_data import Captions, Material, decode_once, shown_concepts
from worlds.emoji.common import TRAINED_STYLES, read_art

__all__ = ["FAST", "FULL_BUDGET", "LAW", "RivalBudget", "bare_backbone", "read_material", "train_rival", "train_rivals"]

LAW = Thurstone(scale=0.0, min_variance=0.5)
SHIFT = 3  # pixels, at most
DECAY = 0.99  # of the averaged weights


@dataclass(frozen=True)
class RivalBudget:
    """How much a rival learns.

    Attributes:
        caption_steps: of the first stage.
        pictures: of its steps.
        vote_steps: of the second stage.
        groups: prompts that share pictures, of its steps.
        art: pictures beside them.
        learning_rates: of the two stages.
        caption_weight: of the captions in the second stage.
        measure_every: steps of the second stage between looks at the validation pairs.
    """

    caption_steps: int = 350
    pictures: int = 96
    vote_steps: int = 400
    groups: int = 6
    art: int = 40
    learning_rates: tuple[float, float] = (2e-3, 1e-3)
    caption_weight: float = 0.5
    measure_every: int = 50


FULL_BUDGET = RivalBudget()
FAST = RivalBudget(caption_steps=2, pictures=8, vote_steps=2, groups=1, art=4, measure_every=2)


def train_rivals(root: Path, preferences: Path, sizes: Sequence[str] = tuple(SIZES), quick: bool = False) -> None:
    """Train rivals as `rival-small`, `rival-large` under a folder; those that are there are left alone.

    Args:
        root: where they go.
        preferences: the preference folder that they learn from.
        sizes: of `SIZES`.
        quick: a few steps, to see that all of it runs.
    """
    missing = [size for size in sizes if not is_rival(root / f"rival-{size}")]
    if not missing:
        return
    data = PreferenceData.open(preferences)
    material = read_material(root / "cache", data)
    for size in missing:
        train_rival(root / f"rival-{size}", SIZES[size], data, material, FAST if quick else FULL_BUDGET)


def read_material(cache: Path, data: PreferenceData) -> Material:
    """Pictures of a preference folder of the emoji world, and art of the concepts that its training pairs show."""
    world = emoji_root()
    pairs = data.pairs("train")
    concepts = shown_concepts(pairs)
    art = [row for row in read_art(TRAINED_STYLES, world / "art") if row["concept"] in concepts]
    pictures, through = decode_once(cache, data, bare_backbone(world), art)
    drawn = torch.stack([row["pixels"] for row in art])
    shows = tuple((row["concept"], row["style"]) for row in art)
    return Material(pictures, pairs, torch.cat([drawn, through]), shows * 2, Captions.of(art))


def bare_backbone(world: Path) -> Backbone:
    """The world's generator, for its VAE."""
    config = train_config(world, Path("unused"), RUNS["main"], FULL, num_blocks(world), seed=0)
    return load_backbone(config.backbone.model_copy(update={"adapter": None}), config.base)


def train_rival(
    out: Path, config: RivalConfig, data: PreferenceData, material: Material, budget: RivalBudget, seed: int = 0
) -> Path:
    """Train one rival, or find it trained.

    Args:
        out: its folder; what the first stage learned lies beside it, so that a killed run goes on there.
        config: of the network.
        data: whose validation split chooses.
        material: what it learns from.
        budget: how much.
        seed: of everything.

    Returns:
        The folder.
    """
    if is_rival(out):
        return out
    first = out.with_name(f"{out.name}-captions")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with MetricsLog(out.with_name(f"{out.name}.jsonl"), 1 if is_rival(first) else 0) as log:
            started = time.process_time()
            if not is_rival(first):
                rival = Rival(config, material.captions.words(material.pairs.prompt))
                learn_captions(rival, material, budget, torch.Generator().manual_seed(seed), log)
                rival.save(first)
                log.write({"kind": "stage", "step": 1, "cpu_seconds": round(time.process_time() - started, 1)})
            rival, started = Rival.from_folder(first), time.process_time()
            learn_votes(rival, data, material, budget, seed, log)
            log.write({"kind": "stage", "step": 2, "cpu_seconds": round(time.process_time() - started, 1)})
    rival.save(out)
    return out


def learn_captions(
    rival: Rival, material: Material, budget: RivalBudget, generator: torch.Generator, log: MetricsLog
) -> None:
    """The first stage: captions and pictures find each other (Radford et al. 2021), several of either being right."""
    rest = list(material.shows)
    parameters = [*rival.trunk.parameters(), *rival.embed.parameters(), *rival.text.parameters(), rival.log_scale]
    optimiser, ema = _optimiser(parameters), Ema(dict(rival.named_parameters()), DECAY)
    rival.train()
    num_art = len(material.art) if not rest else 2 * budget.pictures // 3
    for step in range(budget.caption_steps):
        _set_rate(optimiser, budget.learning_rates[0], step, budget.caption_steps)
        art = torch.randint(len(material.art), (num_art,), generator=generator)
        others = torch.randint(len(rest), (budget.pictures - num_art,), generator=generator) if rest else torch.zeros(0)
        rows = torch.tensor([rest[int(place)] for place in others], dtype=torch.int64)
        shown = [*(material.art_shows[int(p)] for p in art), *(material.shows[int(row)] for row in rows)]
        pixels = augment(torch.cat([material.art[art], material.pictures[rows]]), generator)
        features = rival.standardised(rival.features(pixels))
        loss = caption_loss(rival, rival.embed_pictures(features), shown, material.captions, generator)
        _step(optimiser, loss, parameters)
        ema.update()
        if (step + 1) % 50 == 0 or step + 1 == budget.caption_steps:
            log.write({"kind": "captions", "step": step + 1, "loss": float(loss.detach())})
    ema.copy_to_parameters()


def caption_loss(
    rival: Rival, pictures: Tensor, shown: list[tuple[str, str]], captions: Captions, generator: torch.Generator
) -> Tensor:
    """`-log share of what is true`, by caption and by picture, of embeddings of pictures `[b d]`."""
    texts, true = captions.draw(shown, generator)
    logits = (10 * rival.log_scale).exp() * rival.text(texts, generator) @ pictures.mT

    def one_way(logits: Tensor, true: Tensor) -> Tensor:
        right = logits.masked_fill(~true, -1e4).logsumexp(dim=1)
        return (logits.logsumexp(dim=1) - right)[true.any(dim=1)].mean()

    return (one_way(logits, true) + one_way(logits.mT, true.mT)) / 2


def learn_votes(
    rival: Rival, data: PreferenceData, material: Material, budget: RivalBudget, seed: int, log: MetricsLog
) -> None:
    """The second stage: readers and text tower learn the votes on the resting trunk's statistics."""
    rival.requires_grad_(True).train()
    rival.trunk.requires_grad_(False).eval()
    rival.standardise.eval()
    # Each picture and its mirror image, which is worth the same.
    kept, art = _statistics(rival, material.pictures), _statistics(rival, material.art)
    known = kept[0, sorted({*material.pairs.chosen_row.tolist(), *material.pairs.rejected_row.tolist()})]
    assert rival.standardise.running_mean is not None and rival.standardise.running_var is not None
    rival.standardise.running_mean.copy_(known.mean(dim=0))
    rival.standardise.running_var.copy_(known.var(dim=0))
    kept, art = rival.standardised(kept.flatten(0, 1)).view_as(kept), rival.standardised(art.flatten(0, 1)).view_as(art)
    parameters = [parameter for parameter in rival.parameters() if parameter.requires_grad]
    optimiser, ema = _optimiser(parameters), Ema(dict(rival.named_parameters()), DECAY)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    order, best, chosen = np.zeros(0, dtype=np.int64), -1.0, rival.state_dict()
    for step in range(budget.vote_steps):
        _set_rate(optimiser, budget.learning_rates[1], step, budget.vote_steps)
        if len(order) < budget.groups:
            order = np.concatenate([order, rng.permutation(len(material.groups))])
        taken, order = order[: budget.groups], order[budget.groups :]
        votes, captions = _losses(rival, material, taken, (kept, art), budget, generator)
        _step(optimiser, votes + budget.caption_weight * captions, parameters)
        ema.update()
        if (step + 1) % budget.measure_every == 0 or step + 1 == budget.vote_steps:
            with ema.swapped():
                accuracy = _accuracy(rival, data, kept[0], "validation")
                if accuracy > best:
                    best, chosen = accuracy, {name: value.clone() for name, value in rival.state_dict().items()}
            losses = {"loss": float(votes.detach()), "captions": float(captions.detach())}
            log.write({"kind": "votes", "step": step + 1, **losses, "validation_accuracy": accuracy})
    rival.load_state_dict(chosen)
    rival.eval().requires_grad_(False)


def _losses(
    rival: Rival,
    material: Material,
    groups: np.ndarray,
    statistics: tuple[Tensor, Tensor],
    budget: RivalBudget,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Of the votes on some groups, and of captions for their pictures and some art."""
    kept, art = statistics
    batch = material.batch(groups)
    beside = torch.randint(len(material.art), (budget.art,), generator=generator)
    sides = torch.randint(2, (len(batch.rows) + len(beside),), generator=generator).split(
        [len(batch.rows), len(beside)]
    )
    features = torch.cat([kept[sides[0], batch.rows], art[sides[1], beside]])
    pictures = rival.embed_pictures(features)
    prompts = rival.text(batch.prompts, generator)[batch.prompt]
    utility = rival.utility(features[batch.picture], pictures[batch.picture], prompts)
    chosen, rejected = utility[batch.chosen], utility[batch.rejected]
    losses = nll(LAW.log_prob(chosen, rejected), batch.target, LAW.log_prob(rejected, chosen))
    known = [place for place, row in enumerate(batch.rows.tolist()) if row in material.shows]
    shown = [*(material.shows[int(batch.rows[p])] for p in known), *(material.art_shows[int(p)] for p in beside)]
    places = torch.tensor([*known, *range(len(batch.rows), len(features))], dtype=torch.int64)
    said = caption_loss(rival, pictures[places], shown, material.captions, generator)
    return (batch.weight * losses).sum(), said


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored by a coin and moved by a few pixels on white: uint8 to 0..1, `[b 3 y x]`."""
    pixels = pictures.float() / 255
    coins = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(coins[:, None, None, None], pixels.flip(-1), pixels)
    moves = torch.randint(2 * SHIFT + 1, (len(pixels), 2), generator=generator).tolist()
    padded, (height, width) = F.pad(pixels, (SHIFT,) * 4, value=1.0), pixels.shape[2:]
    return torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(moves)])


@torch.no_grad()
def _statistics(rival: Rival, pictures: Tensor) -> Tensor:
    """Of pictures and of their mirror images `[2 n f]`."""
    parts = [part.float() / 255 for part in pictures.split(128)]
    return torch.stack(
        [torch.cat([rival.features(p.flip(-1) if mirrored else p) for p in parts]) for mirrored in (0, 1)]
    )


@torch.no_grad()
def _accuracy(rival: Rival, data: PreferenceData, features: Tensor, split: str) -> float:
    """Of the decided pairs of a split, from standardised features of every picture."""
    was_training = [module for module in rival.modules() if module.training]
    rival.eval()
    view = SplitView.of(data, split)
    prompts = rival.text(view.prompts)[view.prompt_of]
    own = features[view.rows]
    utility = rival.utility(own, rival.embed_pictures(own), prompts)
    for module in was_training:
        module.training = True
    return pair_credit(view.margin(utility.double()), view.target).accuracy


def _optimiser(parameters: list[nn.Parameter]) -> AdamW:
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)


def _set_rate(optimiser: AdamW, rate: float, step: int, num_steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * cosine(step, num_steps, num_steps // 20)


def _step(optimiser: AdamW, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    if not bool(loss.isfinite()):
        raise WorkError(f"the rival diverged, loss {float(loss):g}; lower learning_rates of its budget")
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
