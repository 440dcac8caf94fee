"""What each block knows: a linear probe on averaged tokens, by depth, pretrained and random.

Tokens after each block are averaged over places (mean and spread), and ridge regression in closed form reads the
oracle's utility from them, centred within each prompt. Nothing is trained by gradient, so this is a floor that any
head should reach, and it says which blocks are worth tapping. Fitted on the training split, measured on validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dina_lrm.backbones import Backbone, BackboneConfig, load_backbone
from dina_lrm.data import PreferenceData
from dina_lrm.demo.world import num_blocks
from dina_lrm.encoding import encode_prompts_once
from dina_lrm.evals import SplitView, prompt_seed
from dina_lrm.metrics import clustered_mean, pair_credit
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.worlds.locate import emoji_root

PENALTY = 0.03  # of ridge regression, by candidate
BATCH = 128

Readings = dict[int, Tensor]


def main(quick: bool = True, world: Path | None = None) -> list[dict[str, Any]]:
    """A row a weights, sigma and depth; quick takes 48 training and 12 validation prompts, too few to conclude from, and one level."""
    root = emoji_root(world)
    data = PreferenceData.open(root / "preferences")
    blocks = tuple(range(1, num_blocks(root)))
    train = SplitView.of(data, "train", 48 if quick else None)
    held_out = SplitView.of(data, "validation", 12 if quick else None)
    rows: list[dict[str, Any]] = []
    for weights, seed in (("pretrained", None), ("random", 0)):
        config = BackboneConfig(image_taps=blocks, text_taps=blocks, max_sequence_length=1, adapter=None)
        backbone = load_backbone(config, str(root / "pipeline"), random_seed=seed)
        for sigma in (0.5,) if quick else (0.1, 0.5):
            seen, new = (_read(backbone, data, view, sigma) for view in (train, held_out))
            for name, taps in _depths(blocks):
                utility = _probe(train, _join(seen, taps), _join(new, taps))
                rows.append({"weights": weights, "sigma": sigma, "after blocks": name, **_accuracy(held_out, utility)})
    return rows


def _depths(blocks: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Each block alone, then three taps that end ever deeper."""
    ends = [last for last in blocks if last >= 4]
    return [
        *((str(block), (block,)) for block in blocks),
        *((f"1, {(1 + last) // 2}, {last}", (1, (1 + last) // 2, last)) for last in ends),
    ]


@torch.no_grad()
def _read(backbone: Backbone, data: PreferenceData, view: SplitView, sigma: float) -> Readings:
    """Mean and spread of both streams after each block `[n 4d]`; candidates of a prompt meet the same noise."""
    prompts = encode_prompts_once(backbone, view.prompts)
    ensemble = NoiseEnsemble((sigma,))
    found: dict[int, list[Tensor]] = {tap: [] for tap in backbone.config.image_taps}
    for places in torch.arange(len(view.candidates)).split(BATCH):
        asked = [view.prompts[i] for i in view.prompt_of[places].tolist()]
        latents = data.latents(view.rows[places])
        noise = ensemble.noise(latents, [prompt_seed(prompt, 0) for prompt in asked])[0]
        state = backbone.process.add_noise(latents, noise, torch.full((len(places),), sigma))
        features = backbone(state, prompts.lookup(asked))
        for tap, image, text in zip(found, features.image_tokens, features.text_tokens, strict=True):
            found[tap].append(torch.cat([image.mean(1), image.std(1), text.mean(1), text.std(1)], dim=1))
    return {tap: torch.cat(parts) for tap, parts in found.items()}


def _join(readings: Readings, taps: tuple[int, ...]) -> Tensor:
    return torch.cat([readings[tap] for tap in taps], dim=1).double()


def _probe(train: SplitView, seen: Tensor, new: Tensor) -> Tensor:
    """Ridge regression of the oracle's utility, centred within prompts; utility of the new candidates."""
    mean, spread = seen.mean(dim=0), seen.std(dim=0) + 1e-4
    x, y = (_centred(values, train.prompt_of) for values in ((seen - mean) / spread, train.oracle[:, None]))
    gram = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return ((new - mean) / spread) @ torch.linalg.solve(gram, x.T @ y)[:, 0]


def _centred(values: Tensor, group: Tensor) -> Tensor:
    sums = torch.zeros(int(group.max()) + 1, values.shape[1], dtype=values.dtype).index_add(0, group, values)
    return values - (sums / torch.bincount(group)[:, None])[group]


def _accuracy(view: SplitView, utility: Tensor) -> dict[str, Any]:
    credit = pair_credit(view.margin(utility), view.target).credit
    whole = clustered_mean(credit, view.prompt_of_pair)
    kinds = sorted(set(view.kinds))
    by_kind = {kind: credit[[i for i, one in enumerate(view.kinds) if one == kind]].nanmean() for kind in kinds}
    return {
        "accuracy %": f"{100 * whole.value:.1f} ({100 * whole.low:.1f} to {100 * whole.high:.1f})",
        **{kind: round(100 * float(value), 1) for kind, value in by_kind.items()},
    }
