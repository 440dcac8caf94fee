from __future__ import annotations

import pytest

from dina_lrm.serve.observer import EngineObserver, Observer


@pytest.fixture
def observer() -> Observer:
    return Observer()


def value(observer: Observer, name: str, **labels: str) -> float | None:
    return observer.registry.get_sample_value(f"dina_lrm_{name}", labels)


def test_requests_are_counted_by_route_status_and_kind_of_error(observer):
    observer.answered("/v1/score", 200, 0.02)
    observer.answered("/v1/score", 429, 0.001)
    observer.failed("queue_full")
    assert value(observer, "requests_total", route="/v1/score", status="200") == 1
    assert value(observer, "request_seconds_count", route="/v1/score") == 2
    assert value(observer, "errors_total", kind="queue_full") == 1


def test_batches_are_counted_by_model_and_work(observer):
    engine = EngineObserver(observer, "m")
    engine.served("read", 8, [0.01, 0.2], 0.3)
    engine.served("read", 2, [], 0.1)
    engine.served("call", 1, [0.5], 0.1)
    labels = {"model": "m", "work": "read"}
    assert value(observer, "states_total", **labels) == 10
    assert value(observer, "batch_states_sum", **labels) == 10
    assert value(observer, "batch_states_count", **labels) == 2
    assert value(observer, "queue_seconds_sum", **labels) == pytest.approx(0.21)
    assert value(observer, "service_seconds_sum", **labels) == pytest.approx(0.4)
    assert value(observer, "states_total", model="m", work="call") == 1


def test_a_model_that_is_unloaded_takes_its_series_along(observer):
    engine, other = EngineObserver(observer, "m"), EngineObserver(observer, "other")
    for one in (engine, other):
        one.accepted(3)
        one.prompts(1, 2)
        one.served("read", 8, [0.01], 0.3)
        one.died()
    engine.forget()
    text = observer.render().decode()
    assert 'model="m"' not in text and 'model="other"' in text
    assert value(observer, "prompts_total", model="other", cache="miss") == 2


def test_a_model_that_never_served_leaves_as_well(observer):
    EngineObserver(observer, "m").forget()
    assert 'model="m"' not in observer.render().decode()


def test_memory_of_the_process_is_told(observer):
    assert observer.registry.get_sample_value("process_resident_memory_bytes") > 0
