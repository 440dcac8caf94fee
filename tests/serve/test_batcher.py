"""Who is read next, without threads or clocks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dina_lrm.serve.batcher import Batcher, Task

WAIT = 10.0


class Line:
    """A batcher and the tasks put into it."""

    def __init__(self, max_batch_size: int = 8) -> None:
        self.batcher = Batcher[Task](max_batch_size)
        self.tickets = 0

    def put(self, client: str = "a", size: int = 1, key: str = "k", weight: int = 1, now: float = 0.0, **more) -> Task:
        self.tickets += 1
        ticket = more.get("ticket", self.tickets)
        task = Task(client=client, ticket=ticket, key=key, size=size, weight=weight, leaves_at=now + WAIT)
        self.batcher.put(task)
        return task

    def take(self, now: float = WAIT) -> list[tuple[str, int]]:
        """Clients of the next batch and how many units each has in it."""
        taken = Counter()
        for share in self.batcher.take(now):
            taken[share.task.client] += share.stop - share.start
        return sorted(taken.items())


def test_a_full_batch_leaves_at_once_and_another_when_its_oldest_has_waited():
    line = Line()
    for _ in range(7):
        line.put(now=3.0)
    assert line.take(now=12.9) == [] and line.batcher.leaves_at == 13.0
    line.put(now=12.9)
    assert line.batcher.leaves_at < 12.9 and line.take(now=12.9) == [("a", 8)]
    line.put(now=20.0)
    assert line.take(now=29.0) == [] and line.take(now=30.0) == [("a", 1)]
    assert line.batcher.leaves_at is None and line.take(now=99.0) == []


def test_what_does_not_fit_together_is_not_read_together():
    line = Line()
    for _ in range(5):
        line.put(key="small")
        line.put(key="large")
    batches = [line.batcher.take(WAIT) for _ in range(2)]
    assert [{share.task.key for share in batch} for batch in batches] == [{"small"}, {"large"}]
    assert [len(batch) for batch in batches] == [5, 5]


def test_a_full_batch_of_one_kind_does_not_wait_for_another_kind():
    line = Line()
    line.put("a", key="lone")
    line.put("b", size=8, key="full")
    assert line.take(now=0.0) == [("b", 8)]
    assert line.take(now=0.0) == []


def test_one_with_two_hundred_delays_one_with_a_single_task_by_no_more_than_a_batch():
    line = Line()
    for _ in range(200):
        line.put("busy")
    line.put("lone")
    assert line.take() == [("busy", 7), ("lone", 1)]
    for _ in range(10):
        assert line.take() == [("busy", 8)]
    line.put("late")
    assert line.take() == [("busy", 7), ("late", 1)]


def test_whoever_comes_back_again_and_again_gets_no_more_than_a_turn():
    line = Line(max_batch_size=4)
    for _ in range(100):
        line.put("busy")
    for _ in range(10):
        line.put("again")
        assert line.take() == [("again", 1), ("busy", 3)]


def test_newcomers_without_end_keep_nobody_waiting():
    line = Line(max_batch_size=4)
    for _ in range(100):
        line.put("patient")
    line.take()
    served = 0
    for batch in range(40):
        for newcomer in range(4):
            line.put(f"newcomer {batch} {newcomer}")
        served += dict(line.take()).get("patient", 0)
    assert 8 <= served <= 40  # a fair share of 160 places among the five to nine who wait


def test_turns_are_counted_in_states():
    line = Line()
    line.put("large", size=100)
    for _ in range(100):
        line.put("small")
    assert line.take() == [("large", 4), ("small", 4)]
    assert line.take() == [("large", 4), ("small", 4)]


def test_turns_hold_across_kinds():
    line = Line(max_batch_size=4)
    for kind in "uvwxyz":
        line.put("many kinds", size=8, key=kind)
    line.put("one kind", size=8)
    leads = [line.take()[0][0] for _ in range(4)]
    assert leads == ["many kinds", "one kind", "many kinds", "one kind"]


def test_a_clients_own_tasks_go_in_order_of_their_tickets():
    line = Line(max_batch_size=2)
    first, second, third = (line.put() for _ in range(3))
    again = line.put(ticket=first.ticket)  # the first one's question has another reading
    assert [share.task for share in line.batcher.take(WAIT)] == [first, again]
    assert [share.task for share in line.batcher.take(WAIT)] == [second, third]


def test_a_task_larger_than_a_batch_is_spread_over_several():
    line = Line()
    line.put(size=20)
    shares = [line.batcher.take(0.0) for _ in range(2)] + [line.batcher.take(WAIT)]
    assert [(share.start, share.stop) for (share,) in shares] == [(0, 8), (8, 16), (16, 20)]
    assert line.batcher.states == 0


@pytest.mark.parametrize(("weight", "units"), [(3, 2), (8, 1), (20, 1)])
def test_states_that_are_read_as_one_stay_together(weight, units):
    line = Line()
    line.put(size=4, weight=weight)
    assert line.take() == [("a", units)]
    assert line.batcher.states == (4 - units) * weight


def test_what_is_dropped_is_not_read_and_clients_who_left_are_forgotten():
    line = Line()
    tasks = [line.put(str(i), size=5) for i in range(3)]
    line.take()
    for task in tasks:
        line.batcher.drop(task)
        line.batcher.drop(task)
    assert line.batcher.states == 0 and line.batcher.leaves_at is None and line.take() == []
    assert not line.batcher._accounts and not line.batcher._lanes


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 9),
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.sampled_from([("k", 1), ("l", 1), ("m", 3)])),
            st.sampled_from(["take", "take later", "drop"]),
        ),
        max_size=60,
    ),
)
def test_every_unit_is_read_once_in_a_batch_of_its_kind(max_batch_size, events):
    line = Line(max_batch_size)
    tasks, read = [], Counter()
    dropped = set()

    def take(now: float) -> bool:
        shares = line.batcher.take(now)
        assert len({share.task.key for share in shares}) <= 1
        assert len(shares) == len({share.task for share in shares})
        assert sum(share.states for share in shares) <= max_batch_size or sum(s.stop - s.start for s in shares) == 1
        for share in shares:
            assert share.start == read[share.task] and share.task not in dropped
            read[share.task] = share.stop
        return bool(shares)

    for event in events:
        match event:
            case "take":
                take(0.0)
            case "take later":
                take(WAIT)
            case "drop":
                if tasks:
                    line.batcher.drop(tasks[len(tasks) // 2])
                    dropped.add(tasks[len(tasks) // 2])
            case (client, size, (key, weight)):
                tasks.append(line.put(client, size, key, weight))
        assert line.batcher.states == sum((t.size - read[t]) * t.weight for t in tasks if t not in dropped)
    while take(WAIT):
        pass
    assert all(read[task] == task.size for task in tasks if task not in dropped)
    assert not line.batcher._accounts and not line.batcher._lanes
