"""What a client sends, which failures it tries again, and what it says in the end."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import pickle
from typing import get_type_hints

import httpx2
import pytest
import torch
from PIL import Image

from dina_lrm.errors import ConfigError, InputError, ShapeError, ValueRangeError, WorkError
from dina_lrm.noise import Adaptive
from dina_lrm.scoring import samples
from dina_lrm.scoring.client import AsyncRewardClient, RewardClient
from dina_lrm.scoring.wire import REQUEST, RankingReply, RewardReply, unpack
from dina_lrm.types import Conditioning, NoisedState, Ranking, Reward

URL = "http://127.0.0.1:8000"
LATENTS = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
Answer = httpx2.Response | Exception


def reward(count=2, draws=1):
    ones = torch.arange(count, dtype=torch.float32) / 3
    drawn = ones.unsqueeze(1).repeat(1, draws)
    if draws > 1:
        drawn[0, -1] = float("nan")
    sigmas = torch.full((draws,), 0.4)
    return Reward(ones - 1, ones, ones + 0.1, ones + 0.2, drawn, sigmas, 0, torch.full((count,), draws))


def good(count=2, draws=1):
    body = RewardReply.of(reward(count, draws), "tiny", "abc").model_dump_json()
    return httpx2.Response(200, content=body, headers={"content-type": "application/json"})


def ranking(order, count=2):
    return RankingReply.of(Ranking(order, reward(count), None, True), "tiny", None, 0)


def refused(status, message="no", raised=None, **headers):
    error = {"kind": "bad_input", "message": message, "type": raised}
    return httpx2.Response(status, json={"error": error}, headers=headers)


class Server:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # Of its own: the body of a response is read once.
        return httpx2.Response(answer.status_code, content=answer.content, headers=answer.headers)

    @property
    def blob(self):
        return unpack(self.requests[-1].content)

    @property
    def said(self):
        return json.loads(self.blob.metadata[REQUEST])


class Time:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Both:
    """The two clients behind one synchronous face."""

    def __init__(self, kind: str, server: Server, **settings) -> None:
        self.time = Time()
        self.kind = kind
        client = RewardClient if kind == "sync" else AsyncRewardClient
        self.client = client(URL, transport=httpx2.MockTransport(server), **settings)
        self.client._line._sleep, self.client._line._now = self.time.sleep, lambda: self.time.now

    def __getattr__(self, name):
        method = getattr(self.client, name)
        return method if self.kind == "sync" else lambda *args, **kwargs: asyncio.run(method(*args, **kwargs))

    def ask(self):
        return self.score(prompts=["a cat"], latents=LATENTS)


@pytest.fixture(params=["sync", "async"])
def client_of(request):
    return lambda *answers, **settings: Both(request.param, Server(*answers), **settings)


@pytest.fixture(params=["sync", "async"])
def asked(request):
    """A client and its server."""
    server = Server(good())
    return Both(request.param, server, model="tiny", api_key="secret"), server


def test_latents_travel_as_float32_with_the_request_beside_them(asked):
    client, server = asked
    client.score(
        prompts=["a cat", "a dog"],
        latents=LATENTS.bfloat16(),
        sigmas=(0.2, 0.5),
        draws=4,
        fusion="tokens",
        antithetic=True,
        seed=[7, 8],
    )
    assert server.blob.tensors.keys() == {"latents"}
    assert torch.equal(server.blob.tensors["latents"], LATENTS.bfloat16().float())
    said = server.said
    assert said["prompts"] == ["a cat", "a dog"] and said["sigmas"] == [0.2, 0.5] and said["seed"] == [7, 8]
    assert (said["draws"], said["fusion"], said["antithetic"], said["model"]) == (4, "tokens", True, "tiny")
    assert said["deadline_ms"] == 120_000
    request = server.requests[0]
    assert request.url.path == "/v1/score_latents" and request.headers["content-type"] == "application/octet-stream"
    assert request.headers["authorization"] == "Bearer secret"


def test_conditioning_keeps_its_dtype_and_mask(asked):
    client, server = asked
    conditioning = Conditioning(
        torch.randn(1, 5, 4).bfloat16(), torch.randn(1, 3).double(), torch.ones(1, 5, dtype=torch.bool)
    )
    client.score(conditioning=conditioning, latents=LATENTS, noise=LATENTS.double())
    sent = server.blob.tensors
    assert torch.equal(sent["prompt_embeds"], conditioning.prompt_embeds)
    assert sent["pooled_prompt_embeds"].dtype == torch.float32 and sent["prompt_mask"].dtype == torch.bool
    assert torch.equal(sent["noise"], LATENTS) and server.said["prompts"] == []


def test_pictures_travel_without_loss(asked):
    client, server = asked
    noisy = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    glass = Image.new("RGBA", (5, 5), (255, 0, 0, 0))
    client.score(prompts=["a cat"], images=[Image.fromarray(noisy), glass])
    files = [server.blob.tensors[f"image.{place}"] for place in range(2)]
    seen = [Image.open(io.BytesIO(file.numpy().tobytes())) for file in files]
    assert all(one.format == "PNG" and one.mode == "RGB" for one in seen)
    assert seen[0].tobytes() == noisy.tobytes()
    assert seen[1].getpixel((0, 0)) == (255, 255, 255)


def test_pixels_travel_as_they_are(asked):
    client, server = asked
    pixels = torch.rand(2, 3, 8, 8)
    client.score(prompts=["a cat"], images=pixels)
    assert torch.equal(server.blob.tensors["pixels"], pixels)


def test_a_state_travels_with_its_sigma(asked):
    client, server = asked
    state = NoisedState(LATENTS, torch.tensor([0.2, 0.5]))
    client.score_state(state, Conditioning(torch.randn(1, 5, 4)))
    assert server.blob.tensors.keys() == {"noised_latents", "sigma", "prompt_embeds"}
    assert torch.equal(server.blob.tensors["sigma"], state.sigma)


def test_adaptive_draws_travel_as_their_rule(asked):
    client, server = asked
    client.score(prompts=["a cat"], latents=LATENTS, draws=Adaptive(8, 0.1, 0.2))
    assert server.said["adaptive"] == {"max_draws": 8, "error_rate": 0.1, "standard_error": 0.2}


def test_the_answer_is_the_same_record_to_the_bit(client_of):
    answer, expected = client_of(good(2, 3)).ask(), reward(2, 3)
    for name in ("reward", "utility", "utility_std", "standard_error", "draws", "sigmas", "spent"):
        assert torch.equal(getattr(answer, name).nan_to_num(9), getattr(expected, name).nan_to_num(9)), name
    assert answer.seed == 0 and answer.spent.dtype == torch.int64


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError(""),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("hung up"),
        *[refused(status) for status in (408, 429, 500, 502, 503, 504)],
        httpx2.Response(503, text="<html>proxy</html>"),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(client_of, failure):
    client = client_of(failure, failure, good())
    assert torch.equal(client.ask().utility, reward().utility)
    first, second = client.time.waits
    assert 0.25 <= first <= 0.5 <= second <= 1.0


def test_many_requests_of_one_question_have_one_deadline(client_of, monkeypatch):
    monkeypatch.setattr(samples, "MOST_STATES", 1)
    later = refused(429, "full", **{"retry-after": "20"})
    client = client_of(later, good(1), later, good(1), timeout=30)
    with pytest.raises(WorkError, match="in 30 s and 1 try: full, and asks to wait 20 s"):
        client.ask()
    assert client.time.waits == [20]


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_requests_of_one_question_do_not_meet_in_the_servers_queue(kind, monkeypatch):
    monkeypatch.setattr(samples, "MOST_STATES", 1)
    inside = []

    async def alone(request: httpx2.Request) -> httpx2.Response:
        inside.append(request)
        await asyncio.sleep(0)
        assert inside == [request]
        inside.remove(request)
        return good(1)

    client = kind(URL, transport=httpx2.MockTransport(alone))
    answer = client.score(prompts=["a cat"], latents=LATENTS)
    assert len(asyncio.run(answer) if kind is AsyncRewardClient else answer) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 413, 415, 422, 426])
def test_what_is_wrong_is_said_once(status):
    server = Server(refused(status, "latents must be [b 16 h w], got [2]", "ShapeError"))
    client = Both("sync", server)
    with pytest.raises(ShapeError, match=r"^latents must be \[b 16 h w\], got \[2\]$"):
        client.ask()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body", [{}, {"error": "no"}, {"error": {"kind": "new", "message": "no such model", "type": "NewError"}}]
)
def test_a_refusal_of_any_form_is_an_input_error(client_of, body):
    with pytest.raises(InputError, match=r"status 404|no such model"):
        client_of(httpx2.Response(404, json=body)).ask()


def test_a_server_that_asks_to_wait_is_kept_to(client_of):
    client = client_of(refused(429, **{"retry-after": "7"}), refused(503, **{"retry-after": "soon"}), good())
    client.ask()
    assert client.time.waits[0] == 7 and client.time.waits[1] <= 1


def test_a_wait_beyond_the_deadline_is_not_begun(client_of):
    client = client_of(refused(503, "loading", **{"retry-after": "600"}), timeout=30)
    with pytest.raises(WorkError, match=r"in 30 s and 1 try: loading, and asks to wait 600 s"):
        client.ask()
    assert client.time.waits == []


def test_enough_tries_are_enough(client_of):
    client = client_of(refused(500, "out of memory"), retries=2)
    with pytest.raises(WorkError, match=r"http://127.0.0.1:8000 gave no answer in 3 tries: out of memory"):
        client.ask()
    assert len(client.time.waits) == 2


def test_the_deadline_holds_for_all_tries_together(client_of):
    client = client_of(httpx2.ConnectError("refused"), timeout=5, retries=100)
    with pytest.raises(WorkError, match="ConnectError refused"):
        client.ask()
    assert 1.5 < client.time.now < 5


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>",
        b'{"reward": [0.0]}',
        RewardReply.of(reward(), "tiny", None).model_copy(update={"reward": [0.0]}).model_dump_json().encode(),
        RewardReply.of(reward(), "tiny", None).model_dump_json().replace('"reward":[-1.0', '"reward":[NaN').encode(),
    ],
)
def test_an_answer_that_is_none_is_no_reward(client_of, body):
    with pytest.raises(WorkError, match="the server's answer"):
        client_of(httpx2.Response(200, content=body)).ask()


def told(reply) -> httpx2.Response:
    return httpx2.Response(200, content=reply.model_dump_json())


@pytest.mark.parametrize("count", [1, 3])
def test_rewards_of_more_or_fewer_samples_than_were_asked_about_are_none(client_of, count):
    with pytest.raises(WorkError, match=f"it tells of {count} samples, and 2 were asked for"):
        client_of(good(count)).ask()


def test_a_part_that_came_short_does_not_shift_the_others(client_of, monkeypatch):
    monkeypatch.setattr(samples, "MOST_STATES", 2)
    with pytest.raises(WorkError, match="it tells of 1 samples, and 2 were asked for"):
        client_of(good(2), good(1), good(3)).score(prompts=["a cat"], latents=LATENTS.repeat(3, 1, 1, 1))


@pytest.mark.parametrize("order", [(5, 5), (0, 0), (0,), (1, -1), (0, 1, 2)])
def test_an_order_names_each_candidate_once(client_of, order):
    with pytest.raises(WorkError, match="orders 2 candidates as"):
        client_of(told(ranking(order))).rank(prompt="a cat", latents=LATENTS)


def test_a_ranking_is_of_the_candidates_that_were_asked_about(client_of):
    with pytest.raises(WorkError, match="it tells of 3 samples, and 2 were asked for"):
        client_of(told(ranking((2, 0, 1), 3))).rank(prompt="a cat", images=[Image.new("RGB", (8, 8))] * 2)
    assert client_of(told(ranking((1, 0)))).rank(prompt="a cat", latents=LATENTS).order == (1, 0)


@pytest.mark.parametrize("place", [-1, 1])
def test_a_prompt_that_was_cut_is_one_that_was_asked_about(client_of, place):
    reply = RewardReply.of(reward(), "tiny", None).model_copy(update={"prompts_cut": [place]})
    with pytest.raises(WorkError, match=rf"cut prompts at \[{place}\], of 1 that were given"):
        client_of(told(reply)).ask()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_gradient_is_refused_and_not_lost(kind):
    client = Both(kind, Server(good()))
    learned = LATENTS.clone().requires_grad_()
    embeds = Conditioning(torch.randn(1, 5, 4))
    with pytest.raises(ConfigError, match=r"latents need a gradient.*latents.detach\(\)"):
        client.score(prompts=["a cat"], latents=learned)
    with pytest.raises(ConfigError, match="noised_latents need a gradient"):
        client.score_state(NoisedState(learned, torch.full((2,), 0.5)), embeds)
    with torch.no_grad():
        client.score(prompts=["a cat"], latents=learned)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ({}, ShapeError, "either images or latents"),
        ({"latents": LATENTS}, ShapeError, "either prompts or conditioning"),
        ({"latents": LATENTS, "prompts": []}, ValueRangeError, "prompts must be a list"),
        ({"latents": LATENTS, "prompts": "a cat"}, ValueRangeError, "prompts must be a list"),
        ({"latents": LATENTS[0], "prompts": ["a"]}, ShapeError, r"latents must be \[b c h w\]"),
        ({"images": [], "prompts": ["a"]}, ShapeError, "one or more pictures"),
        ({"images": ["cat.png"], "prompts": ["a"]}, ShapeError, "PIL pictures"),
        ({"latents": LATENTS, "prompts": ["a"], "sigmas": (1.5,)}, ValueRangeError, "sigmas"),
        ({"latents": LATENTS, "prompts": ["a"], "seed": -1}, ValueRangeError, "seed cannot be sent"),
        ({"latents": LATENTS, "prompts": ["a"], "fusion": "sum"}, ConfigError, "fusion"),
        ({"latents": LATENTS, "prompts": ["a"], "seed": 1.5}, ValueRangeError, "whole number.*1.5"),
        ({"latents": LATENTS, "prompts": ["a"], "sigmas": 0.4}, ValueRangeError, "sigmas.*0.4"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(ask, error, message):
    server = Server(good())
    with pytest.raises(error, match=message):
        Both("sync", server).score(**ask)
    assert not server.requests


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://server", "http://", "http://[::1"])
def test_a_url_must_name_a_server(url):
    with pytest.raises(InputError, match="url"):
        RewardClient(url)


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"retries": -1}, {"backoff": -1}])
def test_patience_has_bounds(bad):
    with pytest.raises(ValueRangeError, match=next(iter(bad))):
        RewardClient(URL, **bad)


def test_a_client_goes_to_another_process_with_its_settings_and_keeps_its_key_to_itself():
    client = RewardClient(URL, model="tiny", api_key="secret", timeout=3)
    again = pickle.loads(pickle.dumps(client))
    assert again.address == client.address and again._line is not client._line
    assert "secret" not in repr(client.address)


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_method_is_the_clients_own_and_tells_what_it_gives(kind):
    assert get_type_hints(kind.score)["return"] is Reward and get_type_hints(kind.rank)["return"] is Ranking
    assert pickle.loads(pickle.dumps(kind.score)) is kind.score
    assert inspect.iscoroutinefunction(kind.score) == (kind is AsyncRewardClient)


def test_cancelling_a_question_hangs_up():
    hung_up = []
    asked = asyncio.Event()

    async def never(request: httpx2.Request) -> httpx2.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            hung_up.append(request.url.path)
            raise
        raise AssertionError

    async def main() -> None:
        async with AsyncRewardClient(URL, transport=httpx2.MockTransport(never)) as client:
            task = asyncio.create_task(client.score(prompts=["a cat"], latents=LATENTS))
            await asyncio.wait_for(asked.wait(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert hung_up == ["/v1/score_latents"]


def test_a_child_that_was_forked_has_connections_of_its_own():
    client = Both("sync", Server(good()))
    client.ask()
    of_the_parent = client.client._line
    client.client._process = -1  # as a child finds it
    assert client.client._of_this_process() is not of_the_parent


def test_readiness_is_asked_without_an_exception(client_of):
    assert client_of(httpx2.Response(200, json={"status": "ready"})).ready()
    assert not client_of(httpx2.Response(503, json={"status": "loading"})).ready()
    assert not client_of(httpx2.ConnectError("refused")).ready()
