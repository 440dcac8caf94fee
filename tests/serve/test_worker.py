"""Threads that die: what they held is read again, and nobody waits for the dead."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from dina_lrm.serve.engine import Engine
from dina_lrm.serve.errors import WorkerError
from dina_lrm.serve.observer import Observer
from tests.serve.fake import FakeModel, ask, in_loop, settle


class Story:
    """An engine whose first batch is held, and requests behind it."""

    def __init__(self, **settings) -> None:
        self.model, self.observer = FakeModel(), Observer()
        self.engine = Engine("fake", self.model, observer=self.observer, **settings)

    async def asked(self, *values: float) -> list[asyncio.Task[list[float]]]:
        self.model.gate.clear()
        before = len(self.model.batches)
        tasks = [asyncio.create_task(self.engine.answer(ask(value), client="a")) for value in values]
        await self.model.begun()
        in_service = len(self.model.batches[before])
        await settle(lambda: self.engine._worker._batcher.states == len(values) - in_service)
        return tasks

    @property
    def deaths(self) -> float:
        return self.observer.registry.get_sample_value("dina_lrm_worker_deaths_total", {"model": "fake"})


async def found(tasks: list[asyncio.Task[list[float]]]) -> list[list[float] | BaseException]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))


@in_loop
async def test_what_a_dead_worker_held_is_read_by_the_next():
    story = Story(max_batch_size=2, max_wait_ms=1e6)
    story.model.deadly = {0.0: [SystemExit("killed")]}
    tasks = await story.asked(0.0, 1.0, 2.0, 3.0)
    story.model.gate.set()
    assert await found(tasks) == [[0.0], [1.0], [2.0], [3.0]]
    assert story.engine.status == "ready" and story.deaths == 1
    # Who stood beside it in the first batch is a matter of which thread was faster.
    fatal, again = [batch for batch in story.model.batches if 0.0 in batch]
    assert len(fatal) == 2 and again == [0.0]
    story.engine.close()


@in_loop
async def test_half_a_request_that_was_read_is_read_again_from_its_beginning():
    story = Story(max_batch_size=2)
    story.model.deadly = {3.0: [SystemExit("killed")]}
    values = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert await story.engine.answer(ask(*values), client="a") == values
    story.engine.close()


@in_loop
async def test_who_kills_twice_fails_and_the_others_are_read():
    story = Story(max_batch_size=1)
    story.model.deadly = {1.0: [SystemExit("killed"), SystemExit("killed")]}
    tasks = await story.asked(0.0, 1.0, 2.0)
    story.model.gate.set()
    first, second, third = await found(tasks)
    assert (first, third) == ([0.0], [2.0])
    assert isinstance(second, WorkerError) and "SystemExit: killed, twice with this request" in str(second)
    assert story.engine.status == "ready"
    story.engine.close()


@in_loop
async def test_who_kills_twice_takes_no_neighbours_along():
    story = Story(max_batch_size=4, max_wait_ms=1e6)
    story.model.deadly = {2.0: [SystemExit("killed"), SystemExit("killed")]}
    tasks = await story.asked(0.0, 1.0, 2.0, 3.0)
    story.model.gate.set()
    found_ones = await found(tasks)
    assert isinstance(found_ones.pop(2), WorkerError) and found_ones == [[0.0], [1.0], [3.0]]
    assert story.model.batches[0] == [0.0, 1.0, 2.0, 3.0] and all(len(batch) == 1 for batch in story.model.batches[1:])
    assert story.engine.status == "ready" and story.deaths == 2
    story.engine.close()


@in_loop
async def test_after_deaths_in_a_row_nobody_waits_and_nobody_is_let_in():
    story = Story(max_batch_size=1)
    for value in (0.0, 1.0):
        story.model.deadly[value] = [SystemExit("killed") for _ in range(2)]
    tasks = await story.asked(0.0, 1.0, 2.0)
    story.model.gate.set()
    assert all(isinstance(error, WorkerError) for error in await found(tasks))
    assert story.engine.status == "failed" and story.deaths == 3
    with pytest.raises(WorkerError, match="start the server again"):
        await story.engine.answer(ask(5.0), client="a")
    assert story.engine.accepted == 0
    await story.engine.drain()
    story.engine.close()


@in_loop
async def test_a_device_in_error_is_no_matter_of_one_batch():
    story = Story()
    story.model.deadly = {0.0: [RuntimeError("CUDA error: device-side assert triggered")]}
    tasks = await story.asked(0.0, 1.0)
    story.model.gate.set()
    assert all(isinstance(error, WorkerError) for error in await found(tasks))
    assert story.engine.status == "failed"
    story.engine.close()


@in_loop
async def test_a_model_runs_in_one_thread_with_the_callers_number_of_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        story = Story()
        # The threads that the question's steps run in take one core each, and must not take the model's.
        assert await story.engine.answer(ask(1.0), client="a") == [1.0]
        found = [await story.engine.call(lambda m: (threading.get_ident(), torch.get_num_threads())) for _ in range(3)]
        aside = await asyncio.wrap_future(story.engine._aside.submit(torch.get_num_threads))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1 and found[0][0] != threading.get_ident()
    assert found[0][1] == before + 1 and aside == 1
    story.engine.close()


@in_loop
async def test_an_answer_for_a_loop_that_is_gone_is_nobodys():
    story = Story()
    story.model.gate.clear()

    def elsewhere() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(story.engine.answer(ask(1.0), client="a"))
        loop.run_until_complete(story.model.begun())
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()

    await asyncio.to_thread(elsewhere)
    story.model.gate.set()
    assert await story.engine.answer(ask(2.0), client="a") == [2.0]
    story.engine.close()
