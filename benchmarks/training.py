"""One training step of ours against the naive step, in one process, in turns, on the emoji world.

The naive step encodes its prompts every time and runs chosen and rejected through the network one after the other, as the
authors' release does. Ours does neither, and learns from pairs, or from whole prompts: all labelled pairs among the
pictures of a few prompts, each picture seen once. Comparisons that share pictures, a sigma and a noise are not independent: what they
teach is in docs/log.md, here is only what they cost. All else is the same code: data, noise, loss, backward, clip, AdamW, EMA.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dina_lrm.demo.settings import FULL, RUNS, train_config
from dina_lrm.demo.world import num_blocks
from dina_lrm.runtime.accelerator import create_accelerator
from dina_lrm.training import ValidationConfig
from dina_lrm.training.run import TrainingRun
from dina_lrm.types import Conditioning, NoisedState
from dina_lrm.worlds.locate import emoji_root

TARGET = 1.6


class OneSideAtATime(nn.Module):
    """Two forwards of b in place of one of 2b."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: NoisedState, conditioning: Conditioning) -> Tensor:
        half = len(state) // 2
        sides = (slice(0, half), slice(half, None))
        return torch.cat([self.network(state[side], conditioning[side]) for side in sides])


class EncodedEachTime(dict[str, Conditioning]):
    """In place of the table of encoded prompts: asks the text encoders again whenever a batch is gathered."""

    def __init__(self, encode: Callable[[list[str]], Conditioning]) -> None:
        super().__init__()
        self._encode = encode

    def prepare(self, prompts: list[str]) -> None:
        encoded = self._encode(prompts)
        self.clear()
        self.update({prompt: encoded[i : i + 1] for i, prompt in enumerate(prompts)})


def main(quick: bool = True, world: Path | None = None) -> list[dict[str, Any]]:
    """Comparisons a second of each kind of step, at the demo's 32 pairs and at the paper's 4 pairs a device.

    Quick times 8 steps of each, else 40.
    """
    return [row for batch_size in (32, 4) for row in _measure(8 if quick else 40, batch_size, world)]


def _measure(steps: int, batch_size: int, world: Path | None) -> list[dict[str, Any]]:
    warm_up = 2
    with tempfile.TemporaryDirectory() as folder:
        root = emoji_root(world)
        config = train_config(root, Path(folder), RUNS["main"], FULL, num_blocks(root), 0)
        config = config.model_copy(update={"validation": ValidationConfig(every=0)})
        pairs = config.model_copy(update={"batch_size": batch_size, "max_candidates": None})
        # As many pictures in a forward as that many pairs have.
        prompts = config.model_copy(update={"batch_size": max(1, round(2 * batch_size / FULL.max_candidates))})
        of_pairs, of_prompts = (TrainingRun(one, create_accelerator(device="cpu")) for one in (pairs, prompts))
        kinds: dict[str, Callable[[int], float]] = {
            "ours, whole prompts": lambda step: _compared(of_prompts, step),
            "ours, pairs": lambda step: _compared(of_pairs, step),
            "text encoded each step": lambda step: _naive(of_pairs, step, text=True, forwards=False),
            "two forwards": lambda step: _naive(of_pairs, step, text=False, forwards=True),
            "naive": lambda step: _naive(of_pairs, step, text=True, forwards=True),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for step in range(warm_up + steps):
            for name, run_step in kinds.items():
                started = time.perf_counter()
                compared = run_step(step)
                if step >= warm_up:
                    taken[name].append((time.perf_counter() - started, compared))
    return [_row(name, measured, taken["naive"], batch_size) for name, measured in taken.items()]


def _compared(run: TrainingRun, step: int) -> float:
    """One step; how many comparisons it learned from."""
    return float(run.step(step)["pairs"] or 0)


def _naive(run: TrainingRun, step: int, text: bool, forwards: bool) -> float:
    table, wrapped = run._prompts, run._wrapped
    try:
        if text:
            each_time = EncodedEachTime(run.network.backbone.encode_prompts)
            each_time.prepare(run._pairs[run._batches.batch(step)].prompt)
            run._prompts = each_time  # type: ignore[assignment]
        if forwards:
            run._wrapped = OneSideAtATime(wrapped)
        return _compared(run, step)
    finally:
        run._prompts, run._wrapped = table, wrapped


def _row(
    name: str, measured: list[tuple[float, float]], naive: list[tuple[float, float]], pairs: int
) -> dict[str, Any]:
    """Medians, and the gain in comparisons a second over the naive step of the same turn."""
    ours, theirs = ([compared / seconds for seconds, compared in steps] for steps in (measured, naive))
    gains = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    return {
        "pairs": pairs,
        "step": name,
        "ms": 1000 * statistics.median(taken for taken, _ in measured),
        "comparisons a step": statistics.mean(compared for _, compared in measured),
        "comparisons a second": statistics.median(ours),
        "gain over naive": statistics.median(gains),
        "lowest": gains[0],
        "highest": gains[-1],
        "wanted": TARGET if name.startswith("ours") else None,
    }
