"""A few hundred of the fuzzers' inputs; `python -m fuzz.wire` and `fuzz.routes` send hundreds of thousands."""

from __future__ import annotations

import random

import pytest

from fuzz.mutations import Mutator
from fuzz.tally import Tally
from fuzz.wire import app_of, ask_routes, read_blobs
from tests.serve.fake import in_loop


def test_spoiled_blobs_are_refused_or_read_as_the_library_reads_them() -> None:
    tally = Tally()
    read_blobs(tally, 600, random.Random(7))
    assert tally.total == 600 and not tally.failures
    assert {name.split(" (")[0] for name in tally.outcomes} >= {
        "reader: refused",
        "reader: read, a request of protocol 1",
    }


@in_loop
async def test_spoiled_requests_are_refused_and_leave_others_alone(golden_model) -> None:
    tally = Tally()
    async with app_of(golden_model) as app:
        await ask_routes(tally, 240, random.Random(8), app)
    assert tally.total == 240 and not tally.failures
    assert {"200", "400 bad_input", "422 bad_input"} <= set(tally.outcomes)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_spoils_in_the_same_way(seed: int) -> None:
    first, second = (Mutator(random.Random(seed)) for _ in range(2))
    value = {"a": [1, "b"], "c": {"d": None}}
    assert [first.json(value) for _ in range(50)] == [second.json(value) for _ in range(50)]
