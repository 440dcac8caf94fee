"""What a server over HTTP costs against the same model in this process, and what it does when too many ask or something dies.

A server runs in a process of its own; clients of protocol version 1, one sample a request, are here. Two models:

- "SD3 shape": random weights, one block of a third of Stable Diffusion 3.5 Medium's width, 128 x 128 pixels, prompts of real
  size, so a request is 3.4 MB and a state takes tens of milliseconds on one thread. The model has one core, as it would have a
  GPU; what HTTP takes from the other core is what it takes beside a GPU. A row says what sharing all cores does.
- "emoji": the demo's model, if `make demo` was run: requests are small and a state takes milliseconds, so HTTP is most of it.

"local" is `RewardModel.score` on batches of 8, before and after each load. A served score must be the local one of the sample
alone. Loads are closed loops (a client asks again when it has its answer) but for overload, which asks at a fixed rate.
"""

from __future__ import annotations

import asyncio
import gc
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import serve_load
from benchmarks.serve_load import Answer, Connection, Sample
from benchmarks.serve_process import NAME, RANDOM, Server, load, serving
from dina_lrm.data import PreferenceData
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.wire import pack
from dina_lrm.types import Conditioning
from dina_lrm.worlds.locate import emoji_root

Row = dict[str, Any]
DEMO = Path(__file__).parents[1] / "runs" / "demo" / "model"
BATCH, WAIT_MS = 8, 10.0
RATIO, P99, REFUSAL_SECONDS, DIFFERENCE = 0.9, 1.5, 0.05, 1e-4
SAMPLES = 64


@dataclass(frozen=True)
class Bench:
    """A model here and what is asked about it.

    Attributes:
        name: for people.
        path: of the model, or `RANDOM`.
        model: loaded here.
        latents: of all samples.
        conditioning: of the same.
        samples: as requests, with local scores.
    """

    name: str
    path: str
    model: RewardModel
    latents: torch.Tensor
    conditioning: Conditioning
    samples: list[Sample]

    @staticmethod
    def of(name: str, path: str, model: RewardModel, latents: torch.Tensor, conditioning: Conditioning) -> Bench:
        """With a level and a seed for each sample."""
        samples = []
        for i in range(len(latents)):
            one, prompt = latents[i : i + 1], conditioning[i : i + 1]
            level = torch.tensor([0.1 + 0.8 * i / len(latents)])
            assert prompt.pooled_prompt_embeds is not None
            body = pack(
                {
                    "latents": one,
                    "prompt_embeds": prompt.prompt_embeds,
                    "pooled_prompt_embeds": prompt.pooled_prompt_embeds,
                    "u": level,
                    "seeds": torch.tensor([i]),
                }
            )
            scored = model.score(latents=one, conditioning=prompt, sigmas=(float(level),), seed=i)
            samples.append(Sample(body, float(scored.utility)))
        return Bench(name, path, model, latents, conditioning, samples)

    def local_rate(self) -> float:
        """Samples a second in batches, in this process."""
        parts = [slice(start, start + BATCH) for start in range(0, len(self.latents), BATCH)]
        batches = [(self.latents[part], self.conditioning[part]) for part in parts]
        started = time.monotonic()
        for latents, conditioning in batches:
            seeds = list(range(len(latents)))
            self.model.score(latents=latents, conditioning=conditioning, seed=seeds, max_batch_size=BATCH)
        return len(self.latents) / (time.monotonic() - started)

    def difference(self, answers: Sequence[Answer]) -> float:
        """Largest distance of a served score from the local one."""
        found = [abs(a.score - self.samples[a.sample].score) for a in answers if a.score is not None]
        return max(found, default=float("nan"))


@torch.no_grad()
def main(quick: bool = True) -> list[Row]:
    """Quick: few rounds, 10 s of overload, no row on shared cores. Else enough for a 99th percentile, and 60 s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows: list[Row] = []
        with tempfile.TemporaryDirectory() as folder:
            for bench in _benches():
                gc.collect()
                gc.freeze()  # the clients' own pauses are not the server's
                rows += _rows(bench, Path(folder) / f"{bench.name}.log", quick)
            if not quick:
                torch.set_num_threads(threads)
                rows += _shared_cores(_random(), Path(folder) / "shared.log", threads)
        return rows
    finally:
        torch.set_num_threads(threads)


def _benches() -> list[Bench]:
    benches = [_random()]
    if (DEMO / "config.json").is_file():
        benches.append(_emoji())
    return benches


def _random() -> Bench:
    generator = torch.Generator().manual_seed(3)
    conditioning = Conditioning(
        torch.randn(SAMPLES, 205, 4096, generator=generator), torch.randn(SAMPLES, 2048, generator=generator)
    )
    latents = torch.randn(SAMPLES, 16, 16, 16, generator=generator)
    return Bench.of("SD3 shape", RANDOM, load(RANDOM), latents, conditioning)


def _emoji() -> Bench:
    model = load(str(DEMO))
    data = PreferenceData.open(emoji_root() / "preferences")
    rows = data.candidates.slice(0, SAMPLES)
    latents = data.latents(rows["latents_row"].to_pylist())
    return Bench.of("emoji", str(DEMO), model, latents, model.encode_prompts(rows["prompt"].to_pylist()))


def _rows(bench: Bench, log: Path, quick: bool) -> list[Row]:
    ms = 1000 / bench.local_rate()
    several = max(3, round(3000 / ms / 256)) if quick else max(4, round(20_000 / ms / 256))
    settings = {"max_batch_size": BATCH, "max_wait_ms": WAIT_MS}
    rows: list[Row] = []
    with serving(bench.path, 1, log, **settings, max_queue=512) as server:
        for clients in (64, 256):
            rows.append(_closed(bench, server, clients, several if clients == 256 else 2 * several))
        rows.append(_lone(bench, server, 10 if quick else 50))
        rows.append(_hang_up(bench, server, several))
        rows.append(_kill_worker(bench, server, several))
        capacity = statistics.mean(row["served/s"] for row in rows[:2])
        rows.append(_terminate(bench, server, log))
    with serving(bench.path, 1, log, **settings, max_queue=64) as server:
        rows.append(_overload(bench, server, capacity, 10.0 if quick else 60.0))
    return [{"model": bench.name, **row} for row in rows]


def _closed(bench: Bench, server: Server, clients: int, rounds: int) -> Row:
    _load(bench, server, clients, 1)  # connections, threads and caches warm
    local = [bench.local_rate()]
    before = _counts(server)
    answers, seconds = _load(bench, server, clients, rounds)
    _check_served(f"{clients} clients", answers)
    after = _counts(server)
    local.append(bench.local_rate())
    batches = after["service_seconds_count"] - before["service_seconds_count"]
    service = (after["service_seconds_sum"] - before["service_seconds_sum"]) / batches
    latencies = np.sort([answer.seconds for answer in answers])
    bound = P99 * clients / BATCH * service
    rate = len(answers) / seconds
    return {
        "what": f"{clients} clients",
        "requests": len(answers),
        "local/s": statistics.mean(local),
        "served/s": rate,
        "ratio": rate / statistics.mean(local),
        "wanted": RATIO,
        "mean batch": len(answers) / batches,
        "batch s": service,
        "p50 s": float(np.quantile(latencies, 0.5)),
        "p99 s": float(np.quantile(latencies, 0.99)),
        "p99 at most": bound,
        "failed": 0,
        "largest difference": bench.difference(answers),
    }


def _load(bench: Bench, server: Server, clients: int, rounds: int) -> tuple[list[Answer], float]:
    return asyncio.run(serve_load.closed_loop(server.host, server.port, bench.samples, clients, rounds))


def _check_served(what: str, answers: Sequence[Answer]) -> None:
    """Nothing spoils these loads and the queue holds them: rates and latencies of failures would say nothing.

    Raises:
        RuntimeError: a request failed.
    """
    failed = Counter(answer.error or f"HTTP {answer.status}" for answer in answers if answer.status != 200)
    if failed:
        told = "; ".join(f"{count} x {reason}" for reason, count in failed.most_common(3))
        raise RuntimeError(f"{what}: {failed.total()} of {len(answers)} requests failed: {told}")


def _counts(server: Server) -> dict[str, float]:
    """What `/metrics` says of readings, and of the model."""
    text = asyncio.run(serve_load.get(server.host, server.port, "/metrics"))
    pattern = rf'^dina_lrm_(\w+)\{{model="{NAME}"(?:,work="read")?\}} (\S+)$'
    return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}


def _lone(bench: Bench, server: Server, rounds: int) -> Row:
    before = _counts(server)
    answers, _ = _load(bench, server, 1, rounds)
    _check_served("a lone client", answers)
    after = _counts(server)

    def mean(name: str) -> float:
        return (after[f"{name}_sum"] - before[f"{name}_sum"]) / rounds

    service, latency = mean("service_seconds"), statistics.mean(answer.seconds for answer in answers)
    return {
        "what": "a lone client",
        "requests": rounds,
        "batch s": service,
        "p50 s": statistics.median(answer.seconds for answer in answers),
        "p99 s": max(answer.seconds for answer in answers),
        "in line s": mean("queue_seconds"),
        "wanted": WAIT_MS / 1000,
        "HTTP and steps s": latency - service - mean("queue_seconds"),
        "failed": 0,
        "largest difference": bench.difference(answers),
    }


def _overload(bench: Bench, server: Server, capacity: float, seconds: float) -> Row:
    _load(bench, server, 16, 2)

    async def story() -> tuple[list[Answer], list[int]]:
        memory: list[int] = []

        async def watch() -> None:
            while True:
                memory.append(server.memory())
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        answers = await serve_load.open_loop(server.host, server.port, bench.samples, 4 * capacity, seconds)
        watching.cancel()
        return answers, memory

    answers, memory = asyncio.run(story())
    start, third = min(answer.started for answer in answers), len(memory) // 3
    good = [a for a in answers if a.status == 200 and start + 1 < a.started + a.seconds <= start + seconds]
    refused = np.sort([answer.seconds for answer in answers if answer.status == 429])
    goodput = len(good) / (seconds - 1)
    return {
        "what": f"4 x capacity for {seconds:.0f} s",
        "requests": len(answers),
        "local/s": capacity,
        "served/s": goodput,
        "ratio": goodput / capacity,
        "wanted": RATIO,
        "refused": len(refused),
        "told in s, median": float(np.quantile(refused, 0.5)),
        "told in s, p99": float(np.quantile(refused, 0.99)),
        "told in s, last": float(refused[-1]),
        "told in at most": REFUSAL_SECONDS,
        "memory MB, first third": max(memory[:third]) / 1e6,
        "memory MB, last third": max(memory[-third:]) / 1e6,
        "failed": sum(answer.status not in (200, 429) for answer in answers),
        "largest difference": bench.difference(answers),
    }


def _hang_up(bench: Bench, server: Server, rounds: int) -> Row:
    """Some hang up in the middle of a body, others in the middle of waiting, beside clients that behave."""

    async def story() -> list[Answer]:
        good = asyncio.create_task(serve_load.closed_loop(server.host, server.port, bench.samples, 16, 4 * rounds))
        for number in range(10 * rounds):
            rude = Connection(server.host, server.port, f"rude-{number}")
            await rude.send_half(bench.samples[number % SAMPLES])
            asking = asyncio.create_task(rude.score(0, bench.samples[number % SAMPLES]))
            await asyncio.sleep(0.02)
            asking.cancel()
            await rude.close()
        answers, _ = await good
        return answers

    answers = asyncio.run(story())
    return _fault("clients hang up mid-body and mid-wait", bench, server, answers)


def _kill_worker(bench: Bench, server: Server, rounds: int) -> Row:
    # Longer than a batch: three deaths without one between them are beyond help.
    pause = 0.1 + 3 * BATCH / bench.local_rate()

    async def story() -> list[Answer]:
        load = asyncio.create_task(serve_load.closed_loop(server.host, server.port, bench.samples, 64, 2 * rounds))
        for _ in range(3):
            await asyncio.sleep(pause)
            server.kill_worker()
        answers, _ = await load
        return answers

    answers = asyncio.run(story())
    return _fault("the worker is killed three times", bench, server, answers)


def _fault(what: str, bench: Bench, server: Server, answers: Sequence[Answer]) -> Row:
    deadline = time.monotonic() + 10
    while _counts(server)["accepted_states"] and time.monotonic() < deadline:
        time.sleep(0.05)
    counts = _counts(server)
    return {
        "what": what,
        "requests": len(answers),
        "deaths": counts["worker_deaths_total"],
        "left in the queue": counts["accepted_states"],
        "failed": sum(answer.status != 200 for answer in answers),
        "largest difference": bench.difference(answers),
    }


def _terminate(bench: Bench, server: Server, log: Path) -> Row:
    pause = 3 * 64 / bench.local_rate()

    async def story() -> tuple[list[Answer], float]:
        load = asyncio.create_task(
            serve_load.closed_loop(server.host, server.port, bench.samples, 64, 10_000, until_refused=True)
        )
        await asyncio.sleep(pause)
        told = time.monotonic()
        server.terminate()
        answers, _ = await load
        return answers, told

    answers, told = asyncio.run(story())
    status = server.process.wait(60)
    unanswered = re.search(r'"event": "drained", "unanswered": (\d+)', log.read_text(encoding="utf-8"))
    before = [answer for answer in answers if answer.started < told]
    return {
        "what": f"SIGTERM under load, exit {status}",
        "requests": len(answers),
        "refused": sum(answer.status == 503 for answer in answers),
        "left in the queue": None if unanswered is None else int(unanswered.group(1)),
        "failed": sum(answer.status not in (200, 503) for answer in before),
        "largest difference": bench.difference(answers),
    }


def _shared_cores(bench: Bench, log: Path, threads: int) -> list[Row]:
    """The model takes every core, so HTTP and clients take from it."""
    with serving(bench.path, threads, log, max_batch_size=BATCH, max_wait_ms=WAIT_MS, max_queue=512) as server:
        row = _closed(bench, server, 64, 6)
    return [{"model": bench.name, **row, "what": f"{row['what']}, model on all {threads} cores", "wanted": None}]
