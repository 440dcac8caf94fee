"""Models that come and go while others serve."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from dina_lrm.errors import CheckpointError
from dina_lrm.serve.errors import DrainingError, LoadingError, NameTakenError, UnknownModelError, WorkerError
from dina_lrm.serve.models import ModelPool, ModelSource
from dina_lrm.serve.observer import Observer
from tests.golden_fixtures import PIPELINE, PUBLISHED
from tests.serve.fake import PATIENCE, FakeModel, ask, in_loop, settle


@pytest.fixture
def pool() -> ModelPool:
    return ModelPool(Observer(), max_wait_ms=1.0)


class SlowLoad:
    """Gives a model when it is let."""

    def __init__(self) -> None:
        self.model, self.gate = FakeModel(), threading.Event()

    def __call__(self) -> FakeModel:
        assert self.gate.wait(PATIENCE)
        return self.model


@in_loop
async def test_the_first_model_is_the_default_and_others_have_names(pool):
    first, second = pool.add("first", FakeModel()), pool.add("second", FakeModel())
    assert pool.engine() is pool.engine("first") is first and pool.engine("second") is second
    assert [(entry.name, entry.status) for entry in pool.entries] == [("first", "ready"), ("second", "ready")]
    with pytest.raises(UnknownModelError, match="no model 'third'; served are: first, second"):
        pool.engine("third")
    with pytest.raises(NameTakenError):
        pool.add("first", FakeModel())
    await pool.close()


@in_loop
async def test_a_model_is_loaded_in_a_thread_while_another_serves(pool):
    pool.add("first", FakeModel())
    load = SlowLoad()
    task = pool.load("second", load)
    assert pool.status == "ready" and pool.entries[1].status == "loading"
    with pytest.raises(LoadingError, match="being loaded") as refused:
        pool.engine("second")
    assert refused.value.retry_after > 1
    with pytest.raises(NameTakenError):
        pool.load("second", load)
    with pytest.raises(LoadingError):
        await pool.unload("second")
    assert await pool.engine().answer(ask(1.0), client="a") == [1.0]
    load.gate.set()
    await task
    assert pool.engine("second").model is load.model
    assert await pool.engine("second").answer(ask(2.0), client="a") == [2.0]
    await pool.close()


@in_loop
async def test_the_server_is_ready_when_its_default_is(pool):
    assert pool.status == "loading"
    with pytest.raises(UnknownModelError, match="none"):
        pool.engine()
    load = SlowLoad()
    task = pool.load("first", load)
    assert pool.status == "loading"
    load.gate.set()
    await task
    assert pool.status == "ready"
    await pool.close()


@in_loop
async def test_a_model_that_cannot_be_loaded_says_why_and_leaves_the_others_ready(pool, tmp_path):
    pool.add("first", FakeModel())
    await pool.load("second", ModelSource(str(tmp_path)).load)
    assert pool.status == "ready" and pool.entries[1].status == "failed"
    assert pool.entries[1].failure.startswith(CheckpointError.__name__)
    with pytest.raises(WorkerError, match="could not be loaded"):
        pool.engine("second")
    await pool.load("second", FakeModel)  # the name is free for another try
    assert pool.entries[1].status == "ready"
    await pool.load("third", ModelSource("/nowhere").load)
    await pool.unload("third")
    assert [entry.name for entry in pool.entries] == ["first", "second"]
    await pool.close()


@in_loop
async def test_a_source_loads_what_the_command_line_names(pool):
    await pool.load("golden", ModelSource(str(PUBLISHED), base=str(PIPELINE), dtype="bfloat16").load)
    assert pool.engine("golden").model.network.backbone.dtype.itemsize == 2
    await pool.close()


@in_loop
async def test_unloading_finishes_what_was_accepted_and_the_next_model_becomes_the_default(pool):
    model = FakeModel()
    first, second = pool.add("first", model), pool.add("second", FakeModel())
    model.gate.clear()
    task = asyncio.create_task(first.answer(ask(1.0), client="a"))
    await model.begun()
    unloads = [asyncio.create_task(pool.unload("first")) for _ in range(3)]
    await settle(lambda: pool.entries[0].status == "draining")
    unloads.pop(0).cancel()  # who asked first waits no more, and it goes on
    await asyncio.sleep(0.01)
    assert not any(one.done() for one in unloads)
    assert pool.engine() is second and pool.status == "ready"
    with pytest.raises(DrainingError):
        await pool.engine("first").answer(ask(1.0), client="a")
    model.gate.set()
    assert await task == [1.0]
    await asyncio.gather(*unloads)
    with pytest.raises(UnknownModelError):
        pool.engine("first")
    await pool.close()


@in_loop
async def test_an_unloaded_model_leaves_memory_and_a_loaded_one_is_not_looked_through_again(pool):
    await pool.load("first", FakeModel)
    assert gc.get_freeze_count() > 10_000
    gone = weakref.ref(pool.engine().model)
    gone().itself = gone()  # as modules and their hooks hold each other
    await pool.unload("first")
    assert gone() is None
    await pool.close()
    gc.unfreeze()


@in_loop
async def test_draining_takes_nothing_more_anywhere(pool):
    model = FakeModel()
    pool.add("first", FakeModel())
    second = pool.add("second", model)
    model.gate.clear()
    task = asyncio.create_task(second.answer(ask(1.0), client="a"))
    await model.begun()
    drained = asyncio.create_task(pool.drain())
    await settle(lambda: pool.status == "draining")
    for name in ("first", "second"):
        with pytest.raises(DrainingError):
            await pool.engine(name).answer(ask(1.0), client="a")
    with pytest.raises(DrainingError):
        pool.load("third", FakeModel)
    assert not drained.done()
    model.gate.set()
    await drained
    assert await task == [1.0]
    await pool.close()


@in_loop
async def test_a_worker_beyond_help_makes_the_server_unready(pool):
    model = FakeModel()
    model.deadly = {1.0: [RuntimeError("CUDA error: an illegal memory access was encountered")]}
    pool.add("first", FakeModel())
    second = pool.add("second", model)
    with pytest.raises(WorkerError):
        await second.answer(ask(1.0), client="a")
    assert pool.status == "failed" and pool.entries[1].status == "failed"
    await pool.unload("second")
    assert pool.status == "ready"
    await pool.close()


@in_loop
async def test_a_model_that_is_loaded_too_late_is_served_by_nobody(pool):
    load = SlowLoad()
    task = pool.load("first", load)
    await pool.close()
    load.gate.set()
    await asyncio.wait([task])
    assert pool.entries == () and pool.status == "draining"


def test_a_load_in_progress_holds_up_no_end():
    load = SlowLoad()

    async def told() -> ModelPool:
        pool = ModelPool(Observer())
        pool.load("first", load)
        await pool.close()
        return pool

    pool = asyncio.run(told())
    assert pool.is_loading and not load.gate.is_set()
    load.gate.set()
    for thread in pool._threads:
        thread.join(PATIENCE)
    assert not pool.is_loading
