"""What trainers ask, where a batch fails as a whole and its turns are asked for one by one."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from dina_lrm.serve.settings import ServeSettings
from tests.serve.fake import in_loop
from tests.serve.serving import base64_of, error_of, random_picture, serving

GOOD = base64_of(random_picture(0))
DAMAGED = GOOD[: len(GOOD) // 2 // 4 * 4]


def turns(*images: str) -> dict[str, list[object]]:
    """A request of UniRL's for the rewards of some pictures."""
    return {"requests": [{"history": [{"text": "a", "image_b64": i}], "required_rewards": ["tiny"]} for i in images]}


@pytest.mark.parametrize("images", [[GOOD], [GOOD, GOOD], [GOOD, "%%"]], ids=["one", "two", "one of two"])
@in_loop
async def test_time_that_is_up_is_no_fault_of_a_turn(golden_model, images) -> None:
    async with serving(golden_model, max_wait_ms=1e6) as client:  # for company that never comes
        late = await client.post("/score", json=turns(*images), headers={"x-drm-deadline-ms": "20"})
        assert error_of(late) == (504, "deadline")


@in_loop
async def test_turns_that_are_asked_for_again_have_no_more_time(golden_model, monkeypatch) -> None:
    async with serving(golden_model) as client:
        engine, deadlines = client.pool.engine(), []
        admit = engine.admit

        @asynccontextmanager
        async def admitted(**how):
            deadlines.append(how.get("deadline"))
            async with admit(**how) as visit:
                yield visit

        monkeypatch.setattr(engine, "admit", admitted)
        headers = {"x-drm-deadline-ms": "60000"}
        response = await client.post("/score", json=turns(GOOD, DAMAGED), headers=headers)
        assert [set(one) for one in response.json()["results"]] == [{"tiny"}, set()]
        at_the_door, *asked = deadlines
        assert at_the_door is None and len(asked) == 3 and len(set(asked)) == 1


@pytest.mark.parametrize("first", [GOOD, DAMAGED, "%%"], ids=["good", "damaged", "no base64"])
@in_loop
async def test_pictures_that_are_too_many_together_are_so_in_parts(golden_model, first) -> None:
    async with serving(golden_model, ServeSettings(max_request_pixels=2 * 64 * 64)) as client:
        assert error_of(await client.post("/score", json=turns(first, GOOD, GOOD, GOOD))) == (413, "too_many_pixels")
        found = (await client.post("/score", json=turns(first, GOOD))).json()
        assert set(found["results"][1]) == {"tiny"}


@in_loop
async def test_a_picture_that_is_too_large_alone_leaves_the_others_theirs(golden_model) -> None:
    settings = ServeSettings(max_pixels=64 * 64, max_request_pixels=2 * 64 * 64)
    async with serving(golden_model, settings) as client:
        large = base64_of(random_picture(1, 256, 64))
        found = (await client.post("/score", json=turns(GOOD, large, GOOD))).json()
        assert [set(one) for one in found["results"]] == [{"tiny"}, set(), {"tiny"}]
        assert found["errors"][1]["tiny"].startswith("too_many_pixels")
