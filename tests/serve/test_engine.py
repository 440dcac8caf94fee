"""Many requests asked of one model: batches, bounds, deadlines, and who goes down with whom."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

from dina_lrm.errors import ValueRangeError, WorkError
from dina_lrm.noise import NoiseEnsemble
from dina_lrm.serve.engine import Engine
from dina_lrm.serve.errors import DeadlineError, DrainingError, QueueFullError
from dina_lrm.serve.observer import Observer
from tests.serve.fake import FakeModel, ask, in_loop, settle

FOREVER_MS = 1e6


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


def engine_of(model, **settings) -> Engine:
    return Engine("fake", model, observer=Observer(), **{"max_wait_ms": 5.0, **settings})


def asked(engine: Engine, *values: float, client: str = "a", **how) -> asyncio.Task[list[float]]:
    return asyncio.create_task(engine.answer(ask(*values, **how), client=client))


async def held(engine: Engine, model: FakeModel) -> asyncio.Task[list[float]]:
    """A request that is being read until the gate opens; what follows stands in line."""
    model.gate.clear()
    passes = len(model.entered)
    task = asked(engine, -1.0, length=1)
    await model.begun(passes + 1)
    return task


async def in_line(engine: Engine, states: int) -> None:
    await settle(lambda: engine._worker._batcher.states == states)


# Batches.


@in_loop
async def test_requests_that_wait_together_are_read_together(model):
    engine = engine_of(model, max_batch_size=8)
    first = await held(engine, model)
    tasks = [asked(engine, float(i), client=str(i)) for i in range(10)]
    await in_line(engine, 10)
    model.gate.set()
    assert await asyncio.gather(*tasks) == [[float(i)] for i in range(10)]
    assert await first == [-1.0]
    assert [len(batch) for batch in model.batches] == [1, 8, 2]
    engine.close()


@in_loop
async def test_a_full_batch_waits_for_nobody(model):
    engine = engine_of(model, max_batch_size=4, max_wait_ms=FOREVER_MS)
    await asyncio.gather(*(asked(engine, float(i)) for i in range(4)))
    assert await asked(engine, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert [len(batch) for batch in model.batches] == [4, 4, 4]
    engine.close()


@in_loop
async def test_a_lone_request_waits_for_company_and_no_longer_than_its_time(model):
    engine = engine_of(model, max_batch_size=2, max_wait_ms=FOREVER_MS)
    waiting = asked(engine, 1.0)
    await in_line(engine, 1)
    assert not model.entered
    assert await asked(engine, 2.0) == [2.0] and await waiting == [1.0]
    assert len(model.batches) == 1
    engine.max_wait_ms = 1.0
    assert await asked(engine, 2.0, prompt=3.0) == [6.0]
    engine.close()


@in_loop
async def test_readings_of_other_shapes_prompts_and_joints_are_batches_of_their_own(model):
    engine = engine_of(model)
    first = await held(engine, model)
    hows = [{"length": 4}, {"length": 5}, {"length": 4, "joined": 2}]
    tasks = [asked(engine, 1.0, 3.0, **how) for how in hows for _ in range(2)]
    await in_line(engine, 12)
    model.gate.set()
    assert await asyncio.gather(*tasks) == [[1.0, 3.0]] * 4 + [[2.0]] * 2
    await first
    assert [len(batch) for batch in model.batches] == [1, 4, 4, 4]
    engine.close()


@in_loop
async def test_many_prompts_of_one_request_follow_their_states_through_batches(model, golden_model, cases):
    """A batch carries only the prompts that its states have."""
    engine = engine_of(model, max_batch_size=2)
    conditioning = golden_model.encode_prompts(["a cat", "a dog", "a fish"], 16)
    candidates = golden_model.candidates(conditioning=conditioning, latents=cases["0.latents"])
    carried = []

    def read(reading):
        carried.append(len(reading.conditioning))
        return golden_model.read(reading)

    model.read = read
    reward = await engine.answer(golden_model.asker.score(candidates, NoiseEnsemble(draws=2)), client="a")
    local = golden_model.answer(golden_model.asker.score(candidates, NoiseEnsemble(draws=2)))
    assert (reward.draws - local.draws).abs().max() < 1e-5 and carried == [2, 2, 2]
    engine.close()


@in_loop
async def test_one_batch_holds_requests_of_any_level_seed_and_prompt_and_their_scores_are_the_local_ones(
    golden_model, golden_conditioning, cases, monkeypatch
):
    engine = Engine("golden", golden_model, observer=Observer(), max_wait_ms=FOREVER_MS, max_batch_size=9)
    latents, sizes = cases["0.latents"], []
    read = golden_model.read

    def questions():
        for i, (sigma, seed) in enumerate([(0.2, 1), (0.5, 2), (0.8, 3)]):
            one = golden_model.candidates(
                conditioning=golden_conditioning[i : i + 1], latents=latents[i : i + 1], seed=seed
            )
            yield golden_model.asker.score(one, NoiseEnsemble(sigmas=(sigma, 0.4, 0.6)))

    monkeypatch.setattr(golden_model, "read", lambda reading: sizes.append(len(reading)) or read(reading))
    served = await asyncio.gather(*(engine.answer(question, client="a") for question in questions()))
    monkeypatch.undo()
    local = [golden_model.answer(question) for question in questions()]
    assert sizes == [9]
    for one, other in zip(served, local, strict=True):
        assert (one.reward - other.reward).abs().max() < 1e-5 and one.seed == other.seed
        assert one.sigmas.tolist() == other.sigmas.tolist()
    engine.close()


@in_loop
async def test_questions_that_ask_again_share_batches_with_others(model):
    engine = engine_of(model, max_batch_size=4, max_wait_ms=FOREVER_MS)
    tasks = [asked(engine, float(i), rounds=3, client=str(i)) for i in range(4)]
    assert await asyncio.gather(*tasks) == [[float(i)] * 3 for i in range(4)]
    assert [sorted(batch) for batch in model.batches] == [[0.0, 1.0, 2.0, 3.0]] * 3
    engine.close()


@in_loop
async def test_a_client_with_hundreds_in_line_holds_up_another_by_one_batch(model):
    engine = engine_of(model)
    first = await held(engine, model)
    busy = [asked(engine, float(i), client="busy") for i in range(200)]
    await in_line(engine, 200)
    lone = asked(engine, 999.0, client="lone")
    await in_line(engine, 201)
    model.gate.set()
    await asyncio.gather(first, lone, *busy)
    assert 999.0 in model.batches[1]
    engine.close()


# Bounds.


@in_loop
async def test_a_full_queue_refuses_and_says_when_to_ask_again(model):
    engine = engine_of(model, max_queue=5)
    first = await held(engine, model)
    second = asked(engine, 1.0, 2.0, 3.0)
    await in_line(engine, 3)
    with pytest.raises(QueueFullError, match="4 states are accepted already and the queue holds 5"):
        await asked(engine, 1.0, 2.0)
    with pytest.raises(ValueRangeError, match="asks for 6 states at once, at most 5"):
        await asked(engine, *range(6))
    third = asked(engine, 1.0)
    await in_line(engine, 4)
    model.gate.set()
    assert await asyncio.gather(first, second, third) == [[-1.0], [1.0, 2.0, 3.0], [1.0]]
    assert engine.accepted == 0
    await asked(engine, *range(5))
    engine.close()


@in_loop
async def test_when_to_ask_again_goes_by_what_states_take_and_what_calls_take(model):
    engine = engine_of(model, max_queue=4)
    worker = engine._worker
    await asked(engine, 1.0)
    before = worker.seconds_ahead(1)
    await engine.call(lambda m: None)
    assert worker.seconds_ahead(1) == before  # however long the call took
    worker._seconds = {"read": 2.0, "call": 100.0}
    first = await held(engine, model)
    async with engine.admit(client="a", states=2) as visit:
        call = asyncio.create_task(visit.call(lambda m: None, 5))
        await in_line(engine, 5)
        with pytest.raises(QueueFullError) as refused:
            await asked(engine, 1.0, 2.0)
        assert refused.value.retry_after == 3 * 2.0 + 5 * 100.0
        model.gate.set()
        await asyncio.gather(first, call)
    engine.close()


@in_loop
async def test_readings_that_follow_are_counted_and_never_refused(model):
    engine, accepted, read = engine_of(model, max_queue=2, max_batch_size=1), [], model.read

    def question():
        yield from ask(1.0)
        return (yield from ask(1.0, 2.0, 3.0))

    model.read = lambda reading: accepted.append(engine.accepted) or read(reading)
    assert await engine.answer(question(), client="a") == [1.0, 2.0, 3.0]
    assert accepted == [1, 3, 3, 3] and engine.accepted == 0
    engine.close()


@in_loop
async def test_a_call_takes_turns_for_all_that_it_encodes(model):
    engine = engine_of(model)
    first = await held(engine, model)
    order: list[str] = []
    async with engine.admit(client="busy") as busy, engine.admit(client="lone") as lone:
        calls = [asyncio.create_task(busy.call(lambda m: order.append("large"), 8)) for _ in range(2)]
        calls += [asyncio.create_task(lone.call(lambda m: order.append("small"))) for _ in range(8)]
        await in_line(engine, 24)
        model.gate.set()
        await asyncio.gather(first, *calls)
    assert order[-1] == "large" and order.count("small") == 8
    engine.close()


@in_loop
async def test_many_prompts_are_encoded_a_few_at_a_time(model):
    engine = engine_of(model, max_batch_size=2)
    found = await engine.encode_prompts(["a", "bb", "ccc", "dddd", "eeeee"])
    assert found.prompt_embeds[:, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert model.encoded == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    engine.close()


@in_loop
async def test_places_taken_at_the_door_are_kept_through_all_steps(model):
    engine = engine_of(model, max_queue=4)
    async with engine.admit(client="a", states=3) as visit:
        await visit.call(lambda m: None)
        assert engine.accepted == 3
        with pytest.raises(QueueFullError):
            await asked(engine, 1.0, 2.0)
        assert await visit.answer(ask(1.0, 2.0, 3.0)) == [1.0, 2.0, 3.0]
    assert engine.accepted == 0
    engine.close()


@in_loop
async def test_what_was_accepted_is_not_refused_at_its_next_reading(model):
    engine = engine_of(model, max_queue=1)
    assert await asked(engine, 1.0, rounds=5) == [1.0] * 5
    engine.close()


@in_loop
async def test_work_whose_deadline_has_passed_is_dropped(model):
    engine = engine_of(model)
    first = await held(engine, model)
    with pytest.raises(DeadlineError, match="deadline"):
        await engine.answer(
            ask(7.0), client="a", deadline=time.monotonic() + 0.02
        )  # nobody reads it before the gate opens
    with pytest.raises(DeadlineError):
        await engine.answer(ask(7.0), client="a", deadline=time.monotonic() - 1)
    assert engine.accepted == 1
    model.gate.set()
    await first
    assert await asked(engine, 8.0) == [8.0]
    assert model.batches == [[-1.0], [8.0]]
    engine.close()


@in_loop
async def test_a_timeout_of_the_question_itself_is_no_deadline(model):
    engine = engine_of(model)
    with pytest.raises(TimeoutError, match="its own"):
        async with engine.admit(client="a", deadline=time.monotonic() + 60):
            raise TimeoutError("its own")
    engine.close()


@in_loop
async def test_who_hangs_up_takes_the_work_along_and_disturbs_nobody(model):
    engine = engine_of(model)
    first = await held(engine, model)
    kept, gone = asked(engine, 1.0), asked(engine, 2.0, 3.0)
    await in_line(engine, 3)
    gone.cancel()
    await in_line(engine, 1)
    first.cancel()  # that one is being read
    model.gate.set()
    assert await kept == [1.0]
    assert model.batches == [[-1.0], [1.0]] and engine.accepted == 0
    assert (await asyncio.gather(first, gone, return_exceptions=True)) != []
    engine.close()


# Failures.


@in_loop
async def test_only_the_culprit_of_a_batch_fails(model):
    engine = engine_of(model, max_batch_size=4)
    first = await held(engine, model)
    model.bad = {2.0}
    tasks = [asked(engine, float(i)) for i in range(4)]
    await in_line(engine, 4)
    model.gate.set()
    found = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert isinstance(found.pop(3), WorkError)
    assert found == [[-1.0], [0.0], [1.0], [3.0]]
    engine.close()


@in_loop
async def test_of_a_failed_request_nothing_more_is_read(model):
    engine = engine_of(model, max_batch_size=2)
    model.bad = {1.0}
    with pytest.raises(WorkError):
        await asked(engine, 0.0, 1.0, 2.0, 3.0, 4.0)
    assert await asked(engine, 9.0) == [9.0]
    assert model.batches == [[0.0, 1.0], [9.0]]
    engine.close()


@in_loop
async def test_wrong_input_is_the_askers_and_reaches_no_batch(model):
    engine = engine_of(model)

    def wrong():
        raise ValueRangeError("seed must be 0 or more, got -1")
        yield

    with pytest.raises(ValueRangeError, match="got -1"):
        await engine.answer(wrong(), client="a")
    assert model.batches == [] and engine.accepted == 0
    engine.close()


@in_loop
async def test_out_of_memory_halves_a_batch_and_the_scores_are_the_same(
    golden_model, golden_conditioning, cases, monkeypatch
):
    engine = Engine("golden", golden_model, observer=Observer(), max_wait_ms=FOREVER_MS, max_batch_size=6)
    candidates = golden_model.candidates(conditioning=golden_conditioning, latents=cases["0.latents"])
    local = golden_model.answer(golden_model.asker.score(candidates, NoiseEnsemble(draws=2)))
    features = golden_model.network.features

    def small(state, conditioning):
        if len(state) > 2:
            raise torch.OutOfMemoryError("no more")
        return features(state, conditioning)

    monkeypatch.setattr(golden_model.network, "features", small)
    with pytest.warns(RuntimeWarning, match=r"out of memory with \d states"):
        served = await engine.answer(golden_model.asker.score(candidates, NoiseEnsemble(draws=2)), client="a")
    assert (served.draws - local.draws).abs().max() < 1e-5
    engine.close()


# Calls and prompts.


@in_loop
async def test_calls_take_their_turn_between_batches(model):
    engine = engine_of(model, max_wait_ms=0.0)
    first = await held(engine, model)
    order = []
    calls = [
        asyncio.create_task(engine.call(lambda m, i=i: order.append(i) or len(m.batches), client="busy"))
        for i in range(20)
    ]
    await in_line(engine, 20)
    lone = asked(engine, 1.0, client="lone")
    await in_line(engine, 21)
    model.gate.set()
    await asyncio.gather(first, lone, *calls)
    assert order == list(range(20))
    assert [call.result() for call in calls].count(1) <= 2  # before the lone one's batch, the rest after it
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda m: 1 / 0)
    engine.close()


@in_loop
async def test_a_prompt_is_encoded_once_however_many_ask(model):
    engine = engine_of(model)
    found = await asyncio.gather(*(engine.encode_prompts(["a cat", "a bird", "a cat"]) for _ in range(5)))
    assert model.encoded == [["a cat", "a bird"]]
    assert all(one.prompt_embeds[:, 0, 0].tolist() == [5.0, 6.0, 5.0] for one in found)
    await engine.encode_prompts(["a bird", "two"])
    assert model.encoded[1:] == [["two"]]
    engine.close()


# The end.


@in_loop
async def test_draining_finishes_what_was_accepted_and_takes_nothing_more(model):
    engine = engine_of(model)
    tasks = [await held(engine, model), asked(engine, 1.0, rounds=4)]
    await in_line(engine, 1)
    drained = asyncio.create_task(engine.drain())
    await settle(lambda: engine.status == "draining")
    with pytest.raises(DrainingError, match="accepts nothing more"):
        await asked(engine, 2.0)
    assert not drained.done()
    model.gate.set()
    await drained
    assert await asyncio.gather(*tasks) == [[-1.0], [1.0] * 4]
    engine.close()


@in_loop
async def test_closing_fails_what_is_open(model):
    engine = engine_of(model, max_wait_ms=FOREVER_MS)
    task = asked(engine, 1.0)
    await in_line(engine, 1)
    engine.close()
    with pytest.raises(DrainingError, match="unloaded"):
        await task
    with pytest.raises(DrainingError):
        await asked(engine, 1.0)


@in_loop
async def test_engines_serve_side_by_side():
    models = [FakeModel(), FakeModel()]
    engines = [engine_of(model) for model in models]
    first = await held(engines[0], models[0])
    assert await asked(engines[1], 2.0) == [2.0]
    assert not first.done()
    models[0].gate.set()
    assert await first == [-1.0]
    for engine in engines:
        engine.close()
