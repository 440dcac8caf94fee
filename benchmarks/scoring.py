"""How much of the machine's own large-matmul rate a reward reaches, and what merging and ensembles do to its time.

A Stable Diffusion 3.5 Medium backbone of real width on random weights with the paper's head, batch 1. Ways are timed in turns in
one process, each between two large matrix products, and a share is of their rate. Two clocks:

- CPU time of one thread. What others do on the machine hardly moves it, so this is the number; its rows have the target.
- Wall time of all threads, as a user has it. On shared cores it says as much of the neighbours as of the code, which is seen in
  the rate that the matrix products reached beside it.

"plain diffusers" is the library's network with the same blocks, called as its pipeline calls it: no hooks, checks, casts or
head. FLOPs are counted on meta. On a CPU torch's counter has no formula for fused attention; the row counted so shows what
that hides. On a GPU `benchmarks/scoring_gpu.py` adds its rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import random_models, scoring_gpu
from benchmarks.random_models import first_blocks, make_inputs, make_model
from benchmarks.shapes import BASES, Base
from dina_lrm.scoring import RewardModel

Row = dict[str, Any]
Ways = dict[str, Callable[[], Tensor]]
TARGET = 0.75
LEVELS = (0.2, 0.5, 0.7)
MATMUL_SIDE = 4096
PLAIN, COMPILED = "plain diffusers", "ours, blocks compiled"


@dataclass(frozen=True)
class Size:
    """What is timed.

    Attributes:
        base: how much of which network.
        side: of the square picture.
        turns: how often each way runs.
        matmul_side: of the square matrices.
    """

    base: Base
    side: int
    turns: int
    matmul_side: int = MATMUL_SIDE

    @property
    def latents(self) -> tuple[int, ...]:
        """Shape of one sample's."""
        return self.base.latents(self.side, self.side)

    @property
    def told(self) -> Row:
        """For a row."""
        return {"blocks": self.base.settings()[0].depth, "picture": f"{self.side} x {self.side}"}


@dataclass(frozen=True)
class Clock:
    """How seconds are read, and on how many threads."""

    name: str
    threads: int
    read: Callable[[], float]

    @contextmanager
    def set(self) -> Iterator[None]:
        """Inside, torch has that many threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call."""
        started = self.read()
        call()
        return self.read() - started


def one_thread() -> Clock:
    """The clock whose shares are the number."""
    return Clock("CPU time, 1 thread", 1, time.process_time)


def all_threads() -> Clock:
    """What a user waits."""
    threads = torch.get_num_threads()
    return Clock(f"wall, {threads} thread{'s' if threads > 1 else ''}", threads, time.perf_counter)


@dataclass(frozen=True)
class Times:
    """Seconds of the ways, one a turn, and of the matrix products around each, in the mean; and what each way gave."""

    clock: Clock
    seconds: dict[str, list[float]]
    matmul_seconds: dict[str, list[float]]
    matmul_flops: int
    results: dict[str, Tensor]

    def rates(self, way: str) -> Row:
        """Time of a way, and the rate of the products around it."""
        rates = [self.matmul_flops / taken / 1e9 for taken in self.matmul_seconds[way]]
        return {
            "what": way,
            "clock": self.clock.name,
            "s": statistics.median(self.seconds[way]),
            "matmul GFLOP/s": statistics.median(rates),
        }

    def shares(self, way: str, flops: int) -> Row:
        """Rate of a way over that of the products around it, in each turn."""
        pairs = zip(self.seconds[way], self.matmul_seconds[way], strict=True)
        found = [flops / taken / (self.matmul_flops / beside) for taken, beside in pairs]
        rate = flops / statistics.median(self.seconds[way]) / 1e9
        return {"GFLOP": flops / 1e9, "GFLOP/s": rate, **_middle("share", found)}

    def against(self, way: str, other: str) -> Row:
        """Time of a way over another's of the same turn."""
        found = [mine / its for mine, its in zip(self.seconds[way], self.seconds[other], strict=True)]
        return {"against": other, **_middle("times", found)}

    def apart(self, way: str, other: str) -> Row:
        """How far what they gave lies apart."""
        return {"largest difference": float((self.results[way] - self.results[other]).abs().max())}


def _middle(name: str, found: Sequence[float]) -> Row:
    """Median, and between what the turns lay."""
    return {name: statistics.median(found), f"{name}, lowest": min(found), f"{name}, highest": max(found)}


def take_turns(ways: Ways, clock: Clock, turns: int, matmul_side: int) -> Times:
    """Run each way once for warmth, then all in turns, every other turn backwards."""
    with clock.set(), torch.no_grad():
        left, right = (torch.randn(matmul_side, matmul_side) for _ in range(2))
        out = torch.empty_like(left)

        def multiply() -> None:
            torch.mm(left, right, out=out)

        multiply()
        results = {name: call() for name, call in ways.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        beside: dict[str, list[float]] = {name: [] for name in ways}
        before = clock.seconds(multiply)
        for turn in range(turns):
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                seconds[name].append(clock.seconds(ways[name]))
                after = clock.seconds(multiply)
                beside[name].append((before + after) / 2)
                before = after
    return Times(clock, seconds, beside, 2 * matmul_side**3, results)


def main(quick: bool = True) -> list[Row]:
    """Quick: 1 or 2 blocks and small pictures, less steady. Else 12 blocks at 512 squared,
    of which the ensemble has 4 and the precision 2.
    """
    base = BASES["SD3.5 Medium"]
    one, two, four, twelve = (first_blocks(base, taps) for taps in ((1,), (1, 2), (1, 2, 4), (4, 8, 12)))
    network = random_models.make_network(two if quick else twelve)
    if quick:
        rows = share_rows(Size(two, 256, 2, 2048), network, wall_compiled=False)
        rows += adapter_rows(Size(two, 256, 2, 2048), network)
        rows += ensemble_rows(Size(one, 128, 1, 2048), network)
    else:
        rows = share_rows(Size(twelve, 512, 4), network)
        rows += precision_rows(Size(two, 512, 2), network)
        rows += adapter_rows(Size(twelve, 512, 4), network)
        rows += ensemble_rows(Size(four, 512, 2), network)
    return rows + scoring_gpu.rows(quick)


# Shares.


def share_rows(size: Size, network: Any, wall_compiled: bool = True) -> list[Row]:
    """Plain diffusers, and ours eager and compiled, on both clocks.

    Args:
        size: of what is timed.
        network: whole, with those blocks or more.
        wall_compiled: time compiled blocks on the second clock too: another number of threads compiles anew.
    """
    ways, refused = _ways(size, network)
    counted = {PLAIN: random_models.flops_of_plain(size.base, size.latents)}
    seen_on_cpu = _count_here(ways[PLAIN])
    ours = random_models.flops_of_reward(size.base, size.latents)
    rows: list[Row] = []
    for clock, number in ((one_thread(), True), (all_threads(), False)):
        timed = ways if number or wall_compiled else {name: way for name, way in ways.items() if name != COMPILED}
        times = take_turns(timed, clock, size.turns, size.matmul_side)
        for way in timed:
            found = times.rates(way) | times.shares(way, counted.get(way, ours))
            rows.append(_share_row(size, found, TARGET if number and way != PLAIN else None))
            if way == PLAIN:
                told = {"what": f"{PLAIN}, attention not counted"}
                rows.append(_share_row(size, found | times.shares(way, seen_on_cpu) | told, None))
    return rows + refused


def _share_row(size: Size, found: Row, target: float | None) -> Row:
    return {"what": found["what"], **size.told, "precision": "float32", **found, "target": target}


def _ways(size: Size, network: Any) -> tuple[Ways, list[Row]]:
    """What is timed on one storage; the second is what cannot be, with the reason."""
    plain = random_models.plain_network(size.base, network)
    model = make_model(size.base, network)
    state, conditioning = make_inputs(model.network.backbone, size.latents, size.base.prompt_length)

    def call_plain() -> Tensor:
        out: Tensor = plain(
            hidden_states=state.noised_latents,
            timestep=1000 * state.sigma,
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled_prompt_embeds,
            return_dict=False,
        )[0]
        return out

    ways: Ways = {PLAIN: call_plain, "ours": lambda: model.utility(state, conditioning)}
    compiled = make_model(size.base, network)
    compiled.network.backbone.compile_blocks()
    try:
        with one_thread().set(), torch.no_grad():
            compiled.utility(state, conditioning)
    except torch._dynamo.exc.TorchDynamoException as error:
        return ways, [{"what": COMPILED, **size.told, "note": f"not compiled here: {str(error).splitlines()[0]}"}]
    return {**ways, COMPILED: lambda: compiled.utility(state, conditioning)}, []


def _count_here(call: Callable[[], Any]) -> int:
    """FLOPs as torch's counter sees them on this device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def precision_rows(size: Size, network: Any) -> list[Row]:
    """Which precision is the best here: both against the float32 product."""
    half = random_models.make_network(size.base, torch.bfloat16)
    ways: Ways = {
        "float32": _utility(make_model(size.base, network), size),
        "bfloat16": _utility(make_model(size.base, half), size),
    }
    times = take_turns(ways, one_thread(), size.turns, size.matmul_side)
    flops = random_models.flops_of_reward(size.base, size.latents)
    return [
        _share_row(size, times.rates(way) | times.shares(way, flops), None)
        | times.against(way, "float32")
        | {"what": "ours, both precisions", "precision": way}
        for way in ways
    ]


def _utility(model: RewardModel, size: Size) -> Callable[[], Tensor]:
    state, conditioning = make_inputs(model.network.backbone, size.latents, size.base.prompt_length)
    return lambda: model.utility(state, conditioning)


# Merging and ensembles.


def adapter_rows(size: Size, network: Any) -> list[Row]:
    """An adapter merged into the weights, and beside them."""
    apart, merged = (make_model(size.base, network, adapter=True) for _ in range(2))
    merged.network.backbone.merge_adapter()
    ways: Ways = {"adapter merged": _utility(merged, size), "adapter apart": _utility(apart, size)}
    times = take_turns(ways, one_thread(), size.turns, size.matmul_side)
    flops = random_models.flops_of_reward(size.base, size.latents)
    return [
        _share_row(size, times.rates(way) | times.shares(way, flops), None)
        | times.against(way, "adapter merged")
        | times.apart(way, "adapter merged")
        for way in ways
    ]


def ensemble_rows(size: Size, network: Any) -> list[Row]:
    """Three levels in one call, in one forward or in three, against three calls."""
    model = make_model(size.base, network)
    state, conditioning = make_inputs(model.network.backbone, size.latents, size.base.prompt_length)
    clean = state.noised_latents

    def call(fusion: Any, states: int, sigmas: Sequence[float] = LEVELS) -> Tensor:
        scored = model.score(
            latents=clean, conditioning=conditioning, sigmas=sigmas, fusion=fusion, max_batch_size=states
        )
        return scored.utility

    calls = f"{len(LEVELS)} calls"
    ways: Ways = {calls: lambda: torch.stack([call("mean", 1, (sigma,)) for sigma in LEVELS]).mean(dim=0)}
    same: dict[str, str] = {calls: calls}  # what must agree with it
    for fusion in ("mean", "tokens"):
        for states, told in ((1, f"{len(LEVELS)} forwards"), (len(LEVELS), "one forward")):
            way = f"one call, {fusion}, {told}"
            ways[way] = lambda fusion=fusion, states=states: call(fusion, states)  # type: ignore[misc]
            same[way] = calls if fusion == "mean" else f"one call, tokens, {len(LEVELS)} forwards"
    times = take_turns(ways, one_thread(), size.turns, size.matmul_side)
    flops = len(LEVELS) * random_models.flops_of_reward(size.base, size.latents)
    return [
        _share_row(size, times.rates(way) | times.shares(way, flops), None)
        | times.against(way, calls)
        | times.apart(way, same[way])
        for way in ways
    ]
