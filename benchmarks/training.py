"""One training step of ours against the naive step, in one process, in turns, on the emoji world.

The naive step encodes its prompts every time and runs chosen and rejected through the network one after the other, as the
authors' release does. All else is the same code: data, noise, loss, backward, clip, AdamW, EMA.
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
    """Pairs a second of both and their ratio, at the demo's batch and at the paper's 4 pairs a device.

    Quick times 8 steps of each, else 40.
    """
    return [row for batch_size in (FULL.batch_size, 4) for row in _measure(8 if quick else 40, batch_size, world)]


def _measure(steps: int, batch_size: int, world: Path | None) -> list[dict[str, Any]]:
    warm_up = 2
    with tempfile.TemporaryDirectory() as folder:
        root = emoji_root(world)
        config = train_config(root, Path(folder), RUNS["main"], FULL, num_blocks(root), 0)
        config = config.model_copy(update={"validation": ValidationConfig(every=0), "batch_size": batch_size})
        run = TrainingRun(config, create_accelerator(device="cpu"))
        seconds: dict[str, list[float]] = {"ours": [], "text encoded each step": [], "two forwards": [], "naive": []}
        for step in range(warm_up + steps):
            for name, taken in seconds.items():
                started = time.perf_counter()
                _step(
                    run,
                    step,
                    naive_text=name in ("text encoded each step", "naive"),
                    naive_forward=name in ("two forwards", "naive"),
                )
                if step >= warm_up:
                    taken.append(time.perf_counter() - started)
    return [_row(name, taken, seconds["ours"], batch_size) for name, taken in seconds.items()]


def _step(run: TrainingRun, step: int, naive_text: bool, naive_forward: bool) -> None:
    table, wrapped = run._prompts, run._wrapped
    try:
        if naive_text:
            each_time = EncodedEachTime(run.network.backbone.encode_prompts)
            each_time.prepare(run._pairs[run._batches.batch(step)].prompt)
            run._prompts = each_time  # type: ignore[assignment]
        if naive_forward:
            run._wrapped = OneSideAtATime(wrapped)
        run.step(step)
    finally:
        run._prompts, run._wrapped = table, wrapped


def _row(name: str, taken: list[float], ours: list[float], pairs: int) -> dict[str, Any]:
    ratios = sorted(other / mine for other, mine in zip(taken, ours, strict=True))
    return {
        "pairs": pairs,
        "step": name,
        "ms": 1000 * statistics.median(taken),
        "pairs a second": pairs / statistics.median(taken),
        "time by ours": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "wanted of naive": TARGET if name == "naive" else None,
    }
