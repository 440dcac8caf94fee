"""What a refusal says of the error behind it."""

from __future__ import annotations

import json

import pytest

from dina_lrm.errors import BaseMismatchError, InputError, ShapeError
from dina_lrm.serve.arena.tickets import TicketError
from dina_lrm.serve.errors import NameTakenError, UnknownModelError
from dina_lrm.serve.refusals import refusal_of
from tests.serve.fake import in_loop
from tests.serve.serving import error_of, serving


@pytest.mark.parametrize("kind", [InputError, ShapeError, BaseMismatchError])
def test_a_class_that_a_model_raises_is_named(kind) -> None:
    assert json.loads(refusal_of(kind("no")).response().body)["error"]["type"] == kind.__name__


@pytest.mark.parametrize("kind", [UnknownModelError, NameTakenError, TicketError])
def test_a_class_that_only_a_server_has_is_not(kind) -> None:
    assert set(json.loads(refusal_of(kind("no")).response().body)["error"]) == {"kind", "message"}


@in_loop
async def test_an_unknown_model_is_told_of_by_its_kind_alone(golden_model) -> None:
    async with serving(golden_model) as client:
        response = await client.post("/v1/rank", json={"prompt": "a", "model": "other", "images": []})
        assert error_of(response) == (404, "unknown_model") and "type" not in response.json()["error"]
