"""UniRL's contract: the bodies of `POST /score`, both ways, and the face of its client."""

import base64
import io
import json

import httpx2
import numpy as np
import pytest
from PIL import Image

from dina_lrm.adapters.asking import Asking
from dina_lrm.adapters.unirl import (
    Answer,
    RewardRequest,
    UnirlClient,
    UnirlRewards,
    read_answer,
    read_requests,
    write_requests,
)
from dina_lrm.errors import ConfigError, DataError, ImageError, InputError, WorkError
from tests.adapters.fake import brightness

UTILITY = Asking(value="utility")


def request(picture, text="a", names=("dina",), **more):
    return RewardRequest(
        history=[("before", Image.new("RGB", (4, 4))), (text, picture)], required_rewards=names, **more
    )


def through(model, **settings):
    """A client whose server is a `UnirlRewards`."""

    def serve(asked):
        answer = UnirlRewards(model, asking=UTILITY).answer(read_requests(json.loads(asked.content)))
        return httpx2.Response(200, json=answer.payload())

    return UnirlClient("http://127.0.0.1:8000", transport=httpx2.MockTransport(serve), **settings)


@pytest.fixture(params=["local", "client"])
def rewards(request, model):
    """Both have one face."""
    return UnirlRewards(model, asking=UTILITY) if request.param == "local" else through(model)


def test_the_last_turn_is_scored_under_its_own_name(rewards, pictures):
    found = rewards.score([request(picture, "a" * (n + 1)) for n, picture in enumerate(pictures)])
    assert found == [{"dina": {"dina": pytest.approx(brightness(p) + 1 + n)}} for n, p in enumerate(pictures)]


def test_what_failed_is_among_the_errors_and_not_the_results(rewards, pictures, black):
    asked = [
        request(pictures[0]),
        request(black),
        request(pictures[1], names=("dina", "clip")),
        request(black, names=()),
    ]
    answer = rewards.answer(asked)
    assert [list(result) for result in answer.results] == [["dina"], [], ["dina"], []]
    assert answer.errors[1] == {"dina": "ImageError: image 0 is black"} and answer.errors[0] == {}
    assert answer.errors[2] == {"clip": "ConfigError: no such reward here; there is 'dina'"}
    with pytest.raises(WorkError, match="request 1 has no reward 'dina': ImageError: image 0 is black"):
        rewards.score(asked)


def test_where_none_can_be_scored_it_raises(model, black):
    with pytest.raises(ImageError):
        UnirlRewards(model).answer([request(black), request(black)])
    empty = RewardRequest([], ["dina"])
    assert "history is empty" in UnirlRewards(model).answer([empty]).errors[0]["dina"]


def test_a_body_is_read_as_it_was_written(pictures):
    asked = [request(pictures[0], "a cat", metadata={"id": 7}), request(pictures[1], names=("dina", "clip"))]
    body = json.loads(json.dumps(write_requests(asked)))
    assert set(body["requests"][0]) == {"history", "required_rewards", "metadata"}
    assert set(body["requests"][0]["history"][0]) == {"text", "image_b64"}
    read = read_requests(body)
    assert [one.required_rewards for one in read] == [["dina"], ["dina", "clip"]]
    assert read[0].metadata == {"id": 7} and read[0].history[-1][0] == "a cat"
    assert np.array_equal(np.asarray(read[0].history[-1][1]), np.asarray(pictures[0]))


def test_the_trainers_own_format_is_read_too(pictures):
    body = write_requests([request(pictures[0])], image_format="JPEG", image_quality=95)
    file = base64.b64decode(body["requests"][0]["history"][1]["image_b64"])
    assert Image.open(io.BytesIO(file)).format == "JPEG"
    assert read_requests(body)[0].history[1][1].size == pictures[0].size
    with pytest.raises(ConfigError, match="image_format must be one of JPEG, PNG, WEBP, got 'TIFF'"):
        write_requests([], image_format="TIFF")


TURN = {"text": "a", "image_b64": ""}


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ([], DataError, "a body must be"),
        ({"requests": {}}, DataError, "a body must be"),
        ({"requests": [{}]}, DataError, "request 0 must have a history"),
        ({"requests": [{"history": [], "required_rewards": []}]}, DataError, "request 0 must have a history"),
        ({"requests": [{"history": [TURN], "required_rewards": "dina"}]}, DataError, "required_rewards"),
        (
            {"requests": [{"history": [{"text": "a"}], "required_rewards": ["dina"]}]},
            DataError,
            "videos are not scored",
        ),
        ({"requests": [{"history": [{**TURN, "image_b64": "%"}], "required_rewards": []}]}, ImageError, "base64"),
        ({"requests": [{"history": [TURN], "required_rewards": []}]}, ImageError, "cannot be read"),
    ],
)
def test_a_body_that_is_none_is_refused(body, error, message):
    with pytest.raises(error, match=message):
        read_requests(body)


@pytest.mark.parametrize(
    "body", [None, {}, {"results": [{}]}, {"results": [{}, {}], "errors": [{}]}, {"results": [1, 2]}]
)
def test_an_answer_that_is_none_is_refused(body):
    with pytest.raises(WorkError, match="as many results and errors"):
        read_answer(body, 2)
    assert read_answer({"results": [{}, {}]}, 2) == Answer([{}, {}], [{}, {}])


def test_the_client_tries_again_what_may_pass_and_nothing_else(pictures):
    def client(*answers):
        left = list(answers)
        return UnirlClient("http://127.0.0.1:8000", transport=httpx2.MockTransport(lambda _: left.pop(0)), api_key="k")

    good = httpx2.Response(200, json={"results": [{"dina": {"dina": 1.5}}], "errors": [{}]})
    assert client(httpx2.Response(503), good).score([request(pictures[0])]) == [{"dina": {"dina": 1.5}}]
    with pytest.raises(InputError, match="no such route"):
        client(httpx2.Response(404, json={"error": {"kind": "x", "message": "no such route"}})).score([])
    with pytest.raises(WorkError, match="not JSON"):
        client(httpx2.Response(200, text="<html>")).score([])
