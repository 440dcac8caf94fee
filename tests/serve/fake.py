"""A model that reads in an instant, or when it is let; and questions to it."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import torch
from torch import Tensor

from dina_lrm.errors import WorkError
from dina_lrm.scoring.questions import Reading
from dina_lrm.types import Conditioning, NoisedState

PATIENCE = 20  # seconds after which a test that waits has failed


class FakeModel:
    """Utility of a state: its latents' mean times its prompt's.

    Attributes:
        batches: values read, a list a forward pass.
        entered: when each pass began.
        gate: passes wait until it is set.
        bad: values that fail a pass.
        deadly: what a pass that holds such a value raises, once an entry.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.entered: list[float] = []
        self.encoded: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.bad: set[float] = set()
        self.deadly: dict[float, list[BaseException]] = {}

    def read(self, reading: Reading) -> Tensor:
        assert not torch.is_grad_enabled()
        values = reading.state.noised_latents.mean(dim=(1, 2, 3))
        self.batches.append(values.tolist())
        self.entered.append(time.monotonic())
        assert self.gate.wait(PATIENCE)
        for value in values.tolist():
            if self.deadly.get(value):
                raise self.deadly[value].pop()
        if self.bad & set(values.tolist()):
            raise WorkError("the model gave 1 utilities that are not finite")
        prompts = reading.conditioning.prompt_embeds.mean(dim=(1, 2))[reading.rows]
        return (values * prompts).view(-1, reading.joined).mean(dim=1)

    def cut_prompts(self, prompts) -> list[bool]:
        return [len(prompt) > 8 for prompt in prompts]

    def encode_prompts(self, prompts) -> Conditioning:
        self.encoded.append(list(prompts))
        return Conditioning(torch.tensor([float(len(prompt)) for prompt in prompts]).view(-1, 1, 1).repeat(1, 4, 2))

    async def begun(self, passes: int = 1) -> None:
        """Wait until so many passes have begun."""
        await settle(lambda: len(self.entered) >= passes)


def ask(
    *values: float, prompt: float = 1.0, length: int = 4, joined: int = 1, rounds: int = 1
) -> Generator[Reading, Tensor, list[float]]:
    """A question about states of these values, asked so many times; its answer is all utilities."""
    found: list[float] = []
    for _ in range(rounds):
        state = NoisedState(
            torch.tensor([float(value) for value in values]).view(-1, 1, 1, 1).repeat(1, 2, 4, 4),
            torch.full((len(values),), 0.4),
        )
        rows = torch.zeros(len(values), dtype=torch.int64)
        utility = yield Reading(state, Conditioning(torch.full((1, length, 2), prompt)), rows, joined)
        found += utility.tolist()
    return found


def in_loop(story: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """A test that is a coroutine, run in a loop of its own and not for ever."""

    @functools.wraps(story)
    def test(*args, **fixtures) -> None:
        async def told() -> None:
            async with asyncio.timeout(3 * PATIENCE):
                await story(*args, **fixtures)

        asyncio.run(told())

    return test


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose time is its own: when there is nothing to do it is at once as late as the next timer says."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._wait, self._selector.select = self._selector.select, self._pass  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now

    def _pass(self, timeout: float | None) -> list[Any]:
        self._now += timeout or 0.0
        return self._wait(0 if timeout is not None else None)


def by_clockwork(story: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """A test that is a coroutine, in which seconds pass in no time, and all in the same order each time."""

    @functools.wraps(story)
    def test(*args, **fixtures) -> None:
        async def told() -> None:
            async with asyncio.timeout(3600):
                await story(*args, **fixtures)

        with asyncio.Runner(loop_factory=Clockwork) as runner:
            runner.run(told())

    return test


async def settle(done: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(0.001)
