"""What an update costs under each reward: operations by phase, bytes, and seconds side by side in one process.

Operations are those of matrix products, convolutions and attention, without text, which is encoded once for either reward; bytes
are those of tensors that the update makes, at its peak, and of the weights that must be there. Seconds are medians of updates
that take turns, so that a noisy machine is as noisy for all.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dina_lrm.alignment.rewards import LatentTerm, PixelTerm
from dina_lrm.alignment.run import AlignRun
from dina_lrm.runtime.accelerator import create_accelerator
from dina_lrm.runtime.memory import peak_bytes
from studies.alignment.settings import Budget, config_of

__all__ = ["measure_costs"]

TURNS = 5
COUNTED = 3  # updates


def measure_costs(root: Path, arms: Iterable[str], budget: Budget, turns: int = TURNS) -> dict[str, dict[str, Any]]:
    """Of every arm under every reward: `{arm: {reward: figures}}`."""
    found = {}
    for arm in arms:
        runs = {reward: _bare_run(root, arm, reward, budget) for reward in budget.rewards}
        counted = {reward: _counted(run) for reward, run in runs.items()}
        seconds = _seconds(list(runs.values()), turns)
        found[arm] = {
            reward: {**counted[reward], "seconds": second, "samples": runs[reward].samples_an_update}
            for reward, second in zip(runs, seconds, strict=True)
        }
    return found


def _bare_run(root: Path, arm: str, reward: str, budget: Budget) -> AlignRun:
    config = config_of(root, arm, reward, 0, budget)
    bare = config.model_copy(
        update={
            "out": root / "costs",
            "evaluation": config.evaluation.model_copy(update={"every": 0, "judges": ()}),
        }
    )
    return AlignRun(bare, create_accelerator(device="cpu"))


def _counted(run: AlignRun) -> dict[str, Any]:
    """Operations of all passes of the policy without gradient (sampling, and the reference's and the old policy's word), of the
    reward's forward, and of what is left: passes with gradient, and the gradients; means over a few updates, for the step that
    learns may be drawn.
    """
    phases = {"sampling": 0, "reward": 0}

    def counting(phase: str, function: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if torch.is_grad_enabled() and not always:
                return function(*arguments)
            with FlopCounterMode(display=False) as counter:
                result = function(*arguments)
            phases[phase] += counter.get_total_flops()
            return result

        return call

    actors = run._actors
    run._actors = replace(
        actors,
        policy=counting("sampling", actors.policy, always=False),
        reward=counting("reward", actors.reward, always=True),
    )
    # Fused attention has no formula in the counter; in its plain form it is two products.
    with sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as whole:
        for number in range(COUNTED):
            run.update(number)
    run._actors = actors
    total = whole.get_total_flops()
    weights = _weights(run)
    activations = max(peak_bytes(partial(run.update, COUNTED + number)) for number in range(COUNTED))
    flops = {**phases, "update": total - sum(phases.values()), "total": total}
    return {
        "flops": {name: count / COUNTED for name, count in flops.items()},
        "bytes": {"activations": activations, "weights": weights, "total": activations + weights},
    }


def _weights(run: AlignRun) -> int:
    """Bytes of all weights that an update needs; what policy and reward share counts once."""
    modules: list[nn.Module] = [run.cast.policy.backbone.network]
    for weighted in run.cast.mixture.terms:
        term = weighted.term
        if isinstance(term, LatentTerm) and isinstance(getattr(term.reward, "network", None), nn.Module):
            modules.append(term.reward.network)  # type: ignore[attr-defined]
        if isinstance(term, PixelTerm):
            modules.append(run.cast.policy.pipeline.vae.decoder)
            modules.append(term.scorer)  # type: ignore[arg-type]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def _seconds(runs: Sequence[AlignRun], turns: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(turns + 1):
        for place, run in enumerate(runs):
            gc.collect()
            started = time.perf_counter()
            run.update(2 * COUNTED + turn)
            if turn:  # the first warms up
                taken[place].append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]
