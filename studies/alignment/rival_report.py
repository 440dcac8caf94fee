"""The pixel rivals beside the latent reward: accuracy on the same held-out pairs, and what a picture costs.

python -m studies.alignment.rival --out runs/study-alignment
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.__main__ import table
from benchmarks.cost import measure as count
from benchmarks.cost import size_of
from dina_lrm.data import PreferenceData
from dina_lrm.demo.align_settings import LEVELS
from dina_lrm.demo.settings import HEADLINE, RULES, SPLITS
from dina_lrm.errors import DataError
from dina_lrm.evals import AccuracyEstimate, ScoredSplit, ScoringRule, SplitView, accuracy_gap, make_card, score_split
from dina_lrm.runtime.files import atomic_write
from dina_lrm.runtime.metrics_log import read_metrics
from dina_lrm.scoring import RewardModel
from dina_lrm.types import NoisedState
from dina_lrm.worlds.locate import emoji_root
from studies.alignment.rival import SIZES, Rival
from studies.alignment.rival_training import LAW, bare_backbone, read_material, train_rivals
from studies.runs import fingerprint

__all__ = ["costs", "main", "measure", "report_once", "score_rival"]


@torch.no_grad()
def score_rival(rival: Rival, data: PreferenceData, pictures: Tensor, split: str) -> ScoredSplit:
    """Every candidate of a split, asked once, as `dina_lrm.evals` scores a latent reward.

    Args:
        rival: asked.
        data: the preference folder.
        pictures: uint8 `[n 3 y x]`, one a row of the folder.
        split: name of it.
    """
    started, view = time.perf_counter(), SplitView.of(data, split)
    asked = [view.prompts[place] for place in view.prompt_of.tolist()]
    parts = torch.arange(len(asked)).split(128)
    found = [rival(pictures[view.rows[part]].float() / 255, [asked[int(i)] for i in part]) for part in parts]
    utility = torch.cat(found).double()
    return ScoredSplit(view, ScoringRule((0.0,)), "own", 0, utility, utility, LAW, time.perf_counter() - started)


def measure(root: Path, data: PreferenceData, rivals: dict[str, Rival], latent: RewardModel) -> list[dict[str, Any]]:
    """A row a reward: accuracy by split and kind, the latent reward's lead pair by pair, and what a picture costs."""
    pictures = read_material(root / "cache", data).pictures
    rule = RULES[HEADLINE][1]
    ours = {split: score_split(latent, data, split, rule) for split in SPLITS}
    rows = [{"reward": "latent", "rule": rule.label, **_accuracies(ours)}]
    for name, rival in rivals.items():
        scored = {split: score_rival(rival, data, pictures, split) for split in SPLITS}
        lead = {split: _told(accuracy_gap(ours[split], scored[split])) for split in SPLITS}
        rows.append({"reward": f"rival, {name}", **_accuracies(scored), "lead_of_latent": lead})
    return rows


def _accuracies(scored: dict[str, ScoredSplit]) -> dict[str, Any]:
    cards = {split: make_card(one) for split, one in scored.items()}
    by_kind = {s: {kind: round(100 * e.value, 1) for kind, e in c.accuracy_by_kind.items()} for s, c in cards.items()}
    return {"accuracy": {split: _told(card.accuracy) for split, card in cards.items()}, "by_kind": by_kind}


def _told(estimate: AccuracyEstimate) -> list[float]:
    """In %, with its interval."""
    return [round(100 * value, 2) for value in (estimate.value, estimate.low, estimate.high)]


def costs(rivals: dict[str, Rival], latent: RewardModel) -> list[dict[str, Any]]:
    """Parameters and operations of a picture's reward, forward and with the gradient to the input; prompts are encoded before.

    The latent reward is asked at all of `LEVELS`, as in runs and in the accuracy beside it.
    """
    prompt, pixels = ["red apple, noto style"], torch.rand(1, 3, 64, 64)
    backbone = bare_backbone(emoji_root())
    latents = torch.randn(1, *backbone.encode_images(pixels).shape[1:])
    text, sigma = latent.encode_prompts(prompt), torch.tensor([0.4])
    parts: list[tuple[str, tuple[nn.Module, ...], Any, Tensor]] = [
        *(
            (f"rival, {name}", (rival,), partial(_read, rival, rival.remembered(prompt)), pixels)
            for name, rival in rivals.items()
        ),
        ("VAE decoder", (_vae(backbone).decoder,), backbone.decode_latents, latents),
        (
            "latent",  # kept backbone and head; text was encoded before
            (latent.network.backbone.network, latent.network.head),
            lambda noised: latent.network(NoisedState(noised, sigma), text),
            latents,
        ),
    ]
    rows = []
    with _counted_whole():
        for what, modules, read, given in parts:
            cost, times = count(read, given, peak=False), len(LEVELS) if what == "latent" else 1
            assert cost.flops_with_gradient is not None
            both = times * cost.flops_with_gradient
            size = size_of(*modules)[0]
            rows.append({"what": what, "parameters": size, "flops": times * cost.flops, "flops_with_gradient": both})
    return rows


def _read(rival: Rival, text: Tensor, pixels: Tensor) -> Tensor:
    return rival.read(pixels, text)


@contextmanager
def _counted_whole() -> Iterator[None]:
    """Attention in its plain form, two products: the counter has no formula for the fused ones."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _vae(backbone: Any) -> Any:
    from dina_lrm.backbones.loading import load_pipeline

    return load_pipeline(str(emoji_root() / "pipeline"), torch.float32).vae


def report_once(root: Path, folder: Path, reward: Path) -> dict[str, Any]:
    """Accuracy and price of our reward and of both rivals, measured when first asked for under these weights.

    Args:
        root: folder of the study, with `rival-small` and `rival-large`.
        folder: of preferences.
        reward: the latent model.
    """
    path, of = root / "rivals.json", fingerprint(reward, *(root / f"rival-{size}" for size in SIZES))
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("of") == of:
        return known
    data, latent = PreferenceData.open(folder), RewardModel.from_pretrained(reward)
    rivals = {size: Rival.from_folder(root / f"rival-{size}") for size in SIZES}
    logs = {size: read_metrics(root / f"rival-{size}.jsonl") for size in SIZES}
    trained = {size: sum(row.get("cpu_seconds", 0) for row in rows) for size, rows in logs.items()}
    results = {
        "of": of,
        "data": data.info["name"],
        "cpu_seconds": trained,
        "accuracy": measure(root, data, rivals, latent),
        "cost": costs(rivals, latent),
    }
    with atomic_write(path) as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    return results


def main() -> None:
    """Train what is not trained, measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m studies.alignment.rival", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the study (default: runs/study-alignment)")
    parser.add_argument("--data", type=Path, help="preference folder (default: preferences/ of the study)")
    parser.add_argument("--reward", type=Path, help="latent model to stand beside (default: reward/model of the study)")
    parser.add_argument("--quick", action="store_true", help="a few steps, in a folder of their own")
    given = parser.parse_args()
    root = given.out or Path("runs/study-alignment-quick" if given.quick else "runs/study-alignment")
    folder, reward = given.data or root / "preferences", given.reward or root / "reward" / "model"
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder; run python -m studies.alignment first, or give --data worlds/emoji/preferences"
        )
    train_rivals(root, folder, quick=given.quick)
    results = report_once(root, folder, reward)
    print(_table(results["accuracy"]), table(results["cost"]), sep="\n\n")


def _table(rows: list[dict[str, Any]]) -> str:
    """Accuracy in % with its interval, and the latent reward's lead over each rival."""

    def cells(estimates: dict[str, list[float]], label: str) -> dict[str, str]:
        return {f"{split}{label}": f"{v:.1f} ({low:.1f} to {high:.1f})" for split, (v, low, high) in estimates.items()}

    leads = [cells(row.get("lead_of_latent", {}), ": latent leads by") for row in rows]
    return table(
        [{"reward": row["reward"], **cells(row["accuracy"], ""), **lead} for row, lead in zip(rows, leads, strict=True)]
    )
