"""Blobs: `python -m fuzz.wire --inputs 100000`.

Most inputs meet the reader alone, which must refuse them by an `InputError` or agree with the safetensors library byte for byte.
The rest go through the routes of an app in memory, with the tiny model behind them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import safetensors.torch
import torch

from dina_lrm.errors import InputError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.wire import unpack
from dina_lrm.serve.app import create_app
from dina_lrm.serve.asked import read_latent_scores
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings
from fuzz.corpus import GOLDEN, Seed, blob_seeds, protocol_seeds, word_seeds
from fuzz.mutations import Mutator
from fuzz.tally import MOST_GROWTH, SHARES, Tally, resident_mib, say, told_shares

ROUTE_SHARE = 0.2
WORD_SHARE = 0.3  # of the inputs of routes: JSON and forms
BATCH = 16  # requests at once


def read_blobs(tally: Tally, count: int, rng: random.Random) -> None:
    """Spoil blobs and read them.

    Args:
        tally: to count in.
        count: of inputs.
        rng: whence they come.
    """
    seeds, mutator = [seed.body for seed in (*protocol_seeds(), *blob_seeds())], Mutator(rng)
    for _ in range(count):
        data = mutator.blob(rng.choice(seeds))
        try:
            tally.outcomes[f"reader: {read(data)}"] += 1
        except Exception:
            tally.fail(traceback.format_exc(), data)


def read(data: bytes) -> str:
    """Read a blob as a server does, and hold it against the library.

    Args:
        data: the blob.

    Returns:
        What came of it.

    Raises:
        AssertionError: the two disagree.
    """
    try:
        blob = unpack(bytearray(data))
    except InputError as error:
        if len(str(error)) > 400 or "\n" in str(error):
            raise AssertionError(f"not one sentence: {error}") from error
        return f"refused ({type(error).__name__})"
    theirs = safetensors.torch.load(data)
    assert theirs.keys() == blob.tensors.keys()
    for name, tensor in blob.tensors.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8))
    try:
        read_latent_scores(bytearray(data))
    except InputError:
        return "read, and no request of protocol 1"
    return "read, a request of protocol 1"


@asynccontextmanager
async def app_of(model: RewardModel) -> AsyncIterator[Any]:
    """An app in memory whose every valid input is answered, and that has nothing left to do at its end."""
    pool = ModelPool(Observer(), max_wait_ms=0)
    app = create_app(pool, ServeSettings(max_body_bytes=2**20))
    async with app.router.lifespan_context(app):
        engine = pool.add("tiny", model)
        for seed in (*protocol_seeds(), *blob_seeds(), *word_seeds()):
            status, body = await ask(app, seed)
            assert status in (200, 403), (seed.path, body)
        yield app
        assert engine.accepted == 0


async def ask_routes(tally: Tally, count: int, rng: random.Random, app: Any) -> None:
    """Spoil requests and send them to an app; valid ones go along and must not notice.

    Args:
        tally: to count in.
        count: of inputs.
        rng: whence they come.
        app: of `app_of`.

    Raises:
        AssertionError: a neighbour's score changed.
    """
    blobs, words, mutator = [*protocol_seeds(), *blob_seeds()], word_seeds(), Mutator(rng)
    good = protocol_seeds()[0]
    wanted = score_of(await ask(app, good))
    while count > 0:
        several = [spoil(mutator, rng, blobs, words) for _ in range(min(BATCH, count))]
        count -= len(several)
        answers = await asyncio.gather(*(tried(app, seed) for seed in (*several, good)))
        for seed, answer in zip(several, answers, strict=False):
            if isinstance(answer, str):
                tally.fail(answer, seed.body)
            else:
                tally.answered(*answer, seed.body)
        assert abs(score_of(answers[-1]) - wanted) < 1e-5, answers[-1]


async def run(tally: Tally, count: int, rng: random.Random) -> list[float]:
    """All inputs, in shares.

    Args:
        tally: to count in.
        count: of inputs.
        rng: whence they come.

    Returns:
        Resident memory after each share, in MiB.
    """
    model = RewardModel.from_pretrained(GOLDEN / "reward", base=str(GOLDEN / "pipeline"))
    routes, sizes = int(count * ROUTE_SHARE), []
    async with app_of(model) as app:
        for share in SHARES:
            read_blobs(tally, round((count - routes) * share), rng)
            await ask_routes(tally, round(routes * share), rng, app)
            gc.collect()
            sizes.append(resident_mib())
    return sizes


def score_of(answer: tuple[int, bytes] | str) -> float:
    """The one score of an answer of protocol 1."""
    assert not isinstance(answer, str) and answer[0] == 200, answer
    (score,) = json.loads(answer[1])["raw_scores"]
    return float(score)


def spoil(mutator: Mutator, rng: random.Random, blobs: Sequence[Seed], words: Sequence[Seed]) -> Seed:
    """One spoiled request."""
    if rng.random() >= WORD_SHARE:
        seed = rng.choice(blobs)
        return Seed(seed.path, seed.kind, mutator.blob(seed.body), headers=seed.headers)
    seed = rng.choice(words)
    if not seed.parts:
        return Seed(seed.path, seed.kind, mutator.json(seed.words))
    parts = seed.parts
    if rng.random() < 0.5:
        parts = (("request", mutator.json(seed.words)), *parts[1:])
    kind, body = mutator.form(parts)
    return Seed(seed.path, kind, body)


async def tried(app: Any, seed: Seed) -> tuple[int, bytes] | str:
    """The answer, or the traceback of what was raised instead."""
    try:
        return await ask(app, seed)
    except Exception:
        return traceback.format_exc()


async def ask(app: Any, seed: Seed) -> tuple[int, bytes]:
    """Status and body of an answer, without a client between."""
    parts: list[dict[str, Any]] = [{"type": "http.request", "body": seed.body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"content-type": seed.kind, **seed.headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": seed.path,
        "raw_path": seed.path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def main() -> int:
    """Run, tell, and fail if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("dina_lrm.serve").setLevel(logging.CRITICAL)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    tally, started = Tally(), time.monotonic()
    sizes = asyncio.run(run(tally, arguments.inputs, random.Random(arguments.seed)))
    say(f"{tally.total} inputs in {time.monotonic() - started:.0f} s, seed {arguments.seed}")
    say(f"resident after {told_shares()} of them: {', '.join(f'{size:.0f}' for size in sizes)} MiB")
    if sizes[-1] - sizes[0] > MOST_GROWTH:
        tally.fail(f"memory grew from {sizes[0]:.0f} to {sizes[-1]:.0f} MiB", b"memory")
    say(tally.table())
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
