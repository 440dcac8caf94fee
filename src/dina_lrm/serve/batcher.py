"""Who is read next: tasks of many clients in line, cut into batches of one kind.

A batch holds units of one key, as many as fit. It leaves when it is full, or when its oldest task has waited long enough.
Clients take turns for every place in it, counted in states (self-clocked fair queueing, Golestani 1994): every unit has a tag,
the one before it of its client plus its states, and the lowest tag goes first. A newcomer begins where service is now. So
hundreds of tasks of one client delay a single one of another by no more than its turn, and no stream of newcomers keeps
anybody waiting for ever. Nothing here knows threads, or has a clock of its own.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar


@dataclass(eq=False, kw_only=True)
class Task:
    """Work in line, in units that may be read apart from each other.

    Attributes:
        client: whose turn it takes.
        ticket: order among the client's own tasks, lower first.
        key: only tasks of one key share a batch.
        size: units.
        weight: states that one unit takes.
        leaves_at: the moment after which it waits for no company.
        taken: units that were handed out.
    """

    client: str
    ticket: int
    key: Hashable
    size: int
    weight: int
    leaves_at: float
    taken: int = 0

    @property
    def states(self) -> int:
        """Those still in line."""
        return (self.size - self.taken) * self.weight


W = TypeVar("W", bound=Task)
_Turn: TypeAlias = tuple[int, int, str]  # tag and ticket of a client's next unit, the client


@dataclass(frozen=True)
class Share(Generic[W]):
    """Units `start` to `stop` of a task, in a batch."""

    task: W
    start: int
    stop: int

    @property
    def states(self) -> int:
        """How many they are."""
        return (self.stop - self.start) * self.task.weight


@dataclass
class _Lane(Generic[W]):
    """Tasks of one key, whose units weigh the same: in order of arrival, and each client's in order of their tickets."""

    weight: int
    tasks: dict[W, None] = field(default_factory=dict)
    lines: dict[str, list[W]] = field(default_factory=dict)
    states: int = 0

    def leaves_at(self, max_batch_size: int) -> float:
        """The moment from which a batch of them may leave."""
        return -math.inf if self.states >= max_batch_size else next(iter(self.tasks)).leaves_at

    def put(self, task: W) -> None:
        self.tasks[task] = None
        bisect.insort(self.lines.setdefault(task.client, []), task, key=lambda task: task.ticket)
        self.states += task.states

    def drop(self, task: W) -> None:
        del self.tasks[task]
        line = self.lines[task.client]
        line.remove(task)
        if not line:
            del self.lines[task.client]
        self.states -= task.states


@dataclass
class _Account:
    """Of one client: the tag of its last unit that was handed out, and its tasks in line."""

    tag: int
    tasks: int = 0


class Batcher(Generic[W]):
    """Tasks in line.

    Attributes:
        max_batch_size: most states in a batch; a single unit of more goes alone.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self._lanes: dict[Hashable, _Lane[W]] = {}
        self._accounts: dict[str, _Account] = {}
        self._tag = 0  # the highest that was handed out

    @property
    def states(self) -> int:
        """All that are in line."""
        return sum(lane.states for lane in self._lanes.values())

    @property
    def leaves_at(self) -> float | None:
        """The moment from which a batch may leave; None with nothing in line."""
        return min((lane.leaves_at(self.max_batch_size) for lane in self._lanes.values()), default=None)

    def put(self, task: W) -> None:
        """Stand in line."""
        self._lanes.setdefault(task.key, _Lane(task.weight)).put(task)
        self._accounts.setdefault(task.client, _Account(self._tag)).tasks += 1

    def drop(self, task: W) -> None:
        """Leave the line, whatever is left of the task; nothing happens if it stands in none."""
        lane = self._lanes.get(task.key)
        if lane is None or task not in lane.tasks:
            return
        lane.drop(task)
        if not lane.tasks:
            del self._lanes[task.key]
        account = self._accounts[task.client]
        account.tasks -= 1
        if not account.tasks:
            del self._accounts[task.client]

    def take(self, now: float) -> list[Share[W]]:
        """The next batch, out of the line; empty if none may leave yet."""
        ready = [lane for lane in self._lanes.values() if lane.leaves_at(self.max_batch_size) <= now]
        if not ready:
            return []
        turns, lane = min(((self._turns(lane), lane) for lane in ready), key=lambda pair: pair[0][0])
        chosen = self._choose(turns, lane)
        shares = [Share(task, task.taken, task.taken + units) for task, units in chosen.items()]
        for share in shares:
            self._hand_out(lane, share)
        return shares

    def _turns(self, lane: _Lane[W]) -> list[_Turn]:
        """A heap of the clients of a lane."""
        accounts = self._accounts
        turns = [(accounts[client].tag + lane.weight, line[0].ticket, client) for client, line in lane.lines.items()]
        heapq.heapify(turns)
        return turns

    def _choose(self, turns: list[_Turn], lane: _Lane[W]) -> dict[W, int]:
        """Units of each task in the next batch: place after place goes to the lowest tag."""
        chosen: Counter[W] = Counter()
        whole: Counter[str] = Counter()  # of each client: tasks that are in the batch to their last unit
        for _ in range(max(1, self.max_batch_size // lane.weight)):
            if not turns:
                break
            tag, _, client = turns[0]
            line = lane.lines[client]
            task = line[whole[client]]
            chosen[task] += 1
            whole[client] += chosen[task] == task.size - task.taken
            if whole[client] < len(line):
                heapq.heapreplace(turns, (tag + lane.weight, line[whole[client]].ticket, client))
            else:
                heapq.heappop(turns)
        return chosen

    def _hand_out(self, lane: _Lane[W], share: Share[W]) -> None:
        task = share.task
        account = self._accounts[task.client]
        account.tag += share.states
        self._tag = max(self._tag, account.tag)
        lane.states -= share.states
        task.taken = share.stop
        if task.taken == task.size:
            self.drop(task)
