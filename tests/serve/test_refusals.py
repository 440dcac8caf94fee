"""What a refusal says of the error behind it."""

from __future__ import annotations

import json

import pytest

from dina_lrm.checkpoint import LoadedModel
from dina_lrm.errors import BaseMismatchError, BaseUnavailableError, InputError, ShapeError
from dina_lrm.scoring import RewardModel
from dina_lrm.scoring.wire import pack
from dina_lrm.serve.arena.tickets import TicketError
from dina_lrm.serve.errors import NameTakenError, UnknownModelError
from dina_lrm.serve.refusals import refusal_of
from tests.serve.fake import in_loop
from tests.serve.serving import error_of, serving, tensors

BLOB = {"content-type": "application/octet-stream"}


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


def test_a_base_that_cannot_be_had_is_the_servers_trouble_and_worth_another_try() -> None:
    refusal = refusal_of(BaseUnavailableError("no VAE"), 400)
    assert refusal.status_code == 503 and refusal.kind == "base_unavailable" and refusal.headers["retry-after"]


@in_loop
async def test_scores_of_latents_need_no_base_within_reach(golden_model, cases, monkeypatch) -> None:
    def gone(self) -> None:
        raise BaseUnavailableError("the base is gone")

    monkeypatch.setattr(type(golden_model.network.backbone), "signature", gone)
    fresh = RewardModel(LoadedModel(golden_model.network, golden_model.config))
    async with serving(fresh) as client:
        sent = pack({name: value for name, value in tensors(cases).items() if name != "u"}, {})
        response = await client.post("/v1/score_latents", content=sent, headers=BLOB)
        assert response.status_code == 200, response.text
