"""verl-omni's HTTP client form, against the rules of wire protocol version 1."""

import asyncio
import inspect
from types import SimpleNamespace

import httpx2
import pytest
import torch

from dina_lrm.adapters import verl_omni_http
from dina_lrm.adapters.verl_omni_http import compute_score
from dina_lrm.errors import ConfigError, InputError, NoAnswerError, ShapeError, ValueRangeError, WorkError
from dina_lrm.scoring.wire import unpack

URL = "http://127.0.0.1:8000/v1/score"


@pytest.fixture
def server(monkeypatch):
    """Answers in turn, and keeps what it was asked."""

    class Server:
        answers: list = []
        requests: list = []

        def __call__(self, request):
            self.requests.append(request)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            return httpx2.Response(answer.status_code, content=answer.content, headers=answer.headers)

        @property
        def tensors(self):
            return unpack(self.requests[-1].content).tensors

    server = Server()
    server.answers, server.requests = [good(2.5)], []
    client = httpx2.AsyncClient
    monkeypatch.setattr(
        verl_omni_http.httpx2, "AsyncClient", lambda **settings: client(transport=httpx2.MockTransport(server))
    )
    return server


def good(score):
    return httpx2.Response(200, json={"protocol_version": "1", "raw_scores": [score], "more": "ignored"})


def given(**changes):
    info = dict(
        latents_clean=torch.randn(1, 16, 8, 8), prompt_embeds=torch.randn(5, 4), pooled_prompt_embeds=torch.randn(1, 3)
    )
    values = dict(solution_image=torch.rand(3, 64, 64), ground_truth="a", extra_info=info, server_url=URL)
    return {**values, "retry_backoff": 0.001, "data_source": "prompts", **changes}


def ask(**changes):
    async def main():
        try:
            return await compute_score(**given(**changes))
        finally:
            await verl_omni_http.close()

    return asyncio.run(main())


def test_the_signature_is_the_documented_one():
    parameters = inspect.signature(compute_score).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    assert list(parameters)[:4] == ["solution_image", "ground_truth", "extra_info", "server_url"]
    assert defaults == dict(
        noise_level=0.4,
        noise_seed=0,
        score_scale=1.0,
        score_bias=0.0,
        timeout=120.0,
        max_retries=2,
        retry_backoff=0.5,
        api_key=None,
        value="utility",
    )
    assert inspect.iscoroutinefunction(compute_score)


def test_the_request_is_protocol_version_1(server):
    answer = ask(score_scale=0.1, score_bias=1.0)
    assert answer == {"score": pytest.approx(1.25), "drm_raw_score": 2.5}
    request = server.requests[0]
    assert str(request.url) == URL and request.method == "POST"
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["x-drm-protocol-version"] == "1" and "authorization" not in request.headers
    tensors = server.tensors
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(
        latents=(1, 16, 8, 8), prompt_embeds=(1, 5, 4), pooled_prompt_embeds=(1, 3), u=(1,), seeds=(1,)
    )
    assert tensors["u"].dtype == torch.float32 and tensors["seeds"].dtype == torch.int64
    assert unpack(request.content).metadata == {}


def test_latents_stand_in_the_pictures_place_with_output_type_latent(server):
    latents = torch.randn(16, 8, 8)
    info = dict(prompt_embeds=torch.randn(1, 5, 4).bfloat16(), pooled_prompt_embeds=torch.randn(3))
    ask(solution_image=latents, extra_info=info, noise_seed=None, noise_level=0.7, api_key="secret")
    assert torch.equal(server.tensors["latents"][0], latents)
    assert server.tensors["prompt_embeds"].dtype == torch.bfloat16 and "seeds" not in server.tensors
    assert float(server.tensors["u"]) == pytest.approx(0.7)
    assert server.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise_level": 1.5}, ValueRangeError, "noise_level"),
        ({"noise_seed": -1}, ValueRangeError, "noise_seed"),
        ({"timeout": 0}, ValueRangeError, "timeout"),
        ({"max_retries": -1}, ValueRangeError, "max_retries"),
        ({"retry_backoff": -1}, ValueRangeError, "backoff"),
        ({"extra_info": {}}, ShapeError, "no latents"),
        ({"extra_info": {"latents_clean": torch.randn(2, 16, 8, 8)}}, ShapeError, "one sample"),
        ({"extra_info": {"latents_clean": torch.randn(16, 8, 8)}}, ShapeError, "prompt_embeds must be a tensor"),
        ({"extra_info": {"latents_clean": "latents"}}, ShapeError, "latents_clean must be a tensor, got str"),
    ],
)
def test_what_is_wrong_is_not_sent(server, changes, error, message):
    with pytest.raises(error, match=message):
        ask(**changes)
    assert not server.requests
    assert issubclass(error, ValueError)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server, status):
    server.answers = [httpx2.Response(status, text="later"), httpx2.ConnectError("refused"), good(3.0)]
    assert ask()["drm_raw_score"] == 3.0
    assert len(server.requests) == 3


def test_a_try_that_takes_too_long_is_tried_again(monkeypatch):
    calls = []

    async def slow(request):
        calls.append(request)
        await asyncio.sleep(0 if len(calls) > 1 else 30)
        return good(1.0)

    client = httpx2.AsyncClient
    monkeypatch.setattr(
        verl_omni_http.httpx2, "AsyncClient", lambda **settings: client(transport=httpx2.MockTransport(slow))
    )
    assert ask(timeout=0.05)["drm_raw_score"] == 1.0 and len(calls) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422, 426])
def test_a_refusal_is_said_at_once(server, status):
    server.answers = [httpx2.Response(status, json={"error": {"kind": "bad_input", "message": "u must be in [0, 1]"}})]
    with pytest.raises(InputError, match=r"^u must be in \[0, 1\]$"):
        ask()
    assert len(server.requests) == 1


def test_no_answer_is_an_error_and_no_zero(server):
    server.answers = [httpx2.Response(503, text="loading")]
    with pytest.raises(WorkError, match="no answer in 3 tries: the server answered with status 503: loading"):
        ask()
    assert len(server.requests) == 3 and issubclass(WorkError, RuntimeError)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"protocol_version": 1, "raw_scores": [1.0]}',
        b'{"protocol_version": "2", "raw_scores": [1.0]}',
        b'{"protocol_version": "1"}',
        b'{"protocol_version": "1", "raw_scores": []}',
        b'{"protocol_version": "1", "raw_scores": [1.0, 2.0]}',
        b'{"protocol_version": "1", "raw_scores": ["1.0"]}',
        b'{"protocol_version": "1", "raw_scores": [null]}',
        b'{"protocol_version": "1", "raw_scores": [true]}',
        b'{"protocol_version": "1", "raw_scores": [NaN]}',
        b'{"protocol_version": "1", "raw_scores": [Infinity]}',
        b'{"protocol_version": "1", "raw_scores": [1e999]}',
    ],
)
def test_an_answer_that_is_none_is_an_error(server, body):
    server.answers = [httpx2.Response(200, content=body)]
    with pytest.raises(WorkError, match="the server"):
        ask()


def test_connections_are_kept_within_a_loop(server):
    async def main():
        await asyncio.gather(*(compute_score(**given()) for _ in range(3)))
        session = verl_omni_http._session()
        await compute_score(**given())
        same = verl_omni_http._session() is session
        await verl_omni_http.close()
        return same and session.is_closed and verl_omni_http._session() is not session

    assert asyncio.run(main())


def test_latents_are_found_among_the_named_media_too(server):
    latents = torch.randn(16, 8, 8)
    spec = SimpleNamespace(modality="image", representation="latent", layout="CHW")
    text = dict(prompt_embeds=torch.randn(5, 4), pooled_prompt_embeds=torch.randn(1, 3))
    ask(extra_info=dict(media_artifacts={"image_latent": SimpleNamespace(spec=spec, data=latents)}, **text))
    assert torch.equal(server.tensors["latents"][0], latents)


def test_the_calibrated_reward_is_given_where_the_server_has_one(server):
    server.answers = [httpx2.Response(200, json={"protocol_version": "1", "raw_scores": [2.5], "rewards": [0.5]})]
    assert ask(value="reward", score_scale=2.0) == {"score": 1.0, "drm_raw_score": 2.5}
    server.answers = [good(2.5)]
    with pytest.raises(WorkError, match="one number under rewards, got None"):
        ask(value="reward")


def test_settings_that_nobody_reads_are_refused(server):
    with pytest.raises(ConfigError, match="noise_levle"):
        ask(noise_levle=0.2)
    with pytest.raises(ConfigError, match="value must be one of reward, utility, got 'raw'"):
        ask(value="raw")
    assert not server.requests


def test_no_answer_is_an_error_of_its_own(server):
    server.answers = [httpx2.ConnectError("refused")]
    with pytest.raises(NoAnswerError, match="no answer in 3 tries"):
        ask()
