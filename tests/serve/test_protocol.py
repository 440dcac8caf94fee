"""Protocol version 1 as its clients hold a server to it."""

from __future__ import annotations

import asyncio
import copy
import json
import math

import httpx2
import pytest
import safetensors.torch
import torch

from dina_lrm.errors import WorkError
from dina_lrm.preference import Calibration
from dina_lrm.serve.settings import ServeSettings
from dina_lrm.types import Conditioning
from tests.serve.fake import in_loop
from tests.serve.serving import call, error_of, scope_of, serving, tensors

HEADERS = {"content-type": "application/octet-stream", "x-drm-protocol-version": "1"}


async def post(client: httpx2.AsyncClient, blob: bytes, **headers: str) -> httpx2.Response:
    return await client.post("/v1/score", content=blob, headers=HEADERS | headers)


async def strict_score(client: httpx2.AsyncClient, latents, prompt_embeds, pooled, u: float, seed: int | None) -> float:
    """One sample, as the trainer's client sends it and reads the answer: whatever is not as agreed is an error."""
    sent = {
        "latents": latents.unsqueeze(0),
        "prompt_embeds": prompt_embeds.unsqueeze(0),
        "pooled_prompt_embeds": pooled.unsqueeze(0),
        "u": torch.tensor([u], dtype=torch.float32),
    }
    if seed is not None:
        sent["seeds"] = torch.tensor([seed], dtype=torch.int64)
    response = await post(client, safetensors.torch.save(sent))
    if response.status_code != 200:
        raise RuntimeError(f"DRM server returned HTTP {response.status_code}: {response.text}")
    if response.headers["content-type"] != "application/json":
        raise RuntimeError(f"not JSON but {response.headers['content-type']}")
    body = json.loads(response.content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    if not isinstance(body, dict) or body.get("protocol_version") != "1":
        raise RuntimeError("protocol mismatch")
    scores = body.get("raw_scores")
    if not isinstance(scores, list) or len(scores) != 1 or type(scores[0]) not in (float, int):
        raise RuntimeError("raw_scores must hold one number")
    if not math.isfinite(scores[0]):
        raise RuntimeError("the score is not finite")
    return scores[0]


def local(model, cases, place: int, u: float, seed: int, case: int = 0) -> float:
    given = Conditioning(
        cases["text.128.prompt_embeds"][place : place + 1], cases["text.128.pooled"][place : place + 1]
    )
    latents = cases[f"{case}.latents"][place : place + 1]
    with torch.no_grad():
        return float(model.score(conditioning=given, latents=latents, sigmas=(u,), seed=seed).utility)


def sample(cases, place: int, case: int = 0):
    return (
        cases[f"{case}.latents"][place],
        cases["text.128.prompt_embeds"][place],
        cases["text.128.pooled"][place],
    )


@in_loop
async def test_a_score_is_the_local_utility(golden_model, cases) -> None:
    async with serving(golden_model) as client:
        for place, u, seed in [(0, 0.4, 7), (1, 0.0, 0), (2, 1.0, 2**63 - 1)]:
            found = await strict_score(client, *sample(cases, place), u, seed)
            assert found == pytest.approx(local(golden_model, cases, place, u, seed), abs=1e-5)


@in_loop
async def test_the_score_is_raw_whatever_the_calibration(golden_model, cases) -> None:
    model = copy.copy(golden_model)
    model.calibration = Calibration(0.1, 1.0)
    async with serving(model) as client:
        response = await post(client, safetensors.torch.save(tensors(cases, seeds=torch.tensor([3]))))
    utility = local(golden_model, cases, 0, 0.4, 3)
    assert response.json()["raw_scores"] == pytest.approx([utility], abs=1e-5)
    assert response.json()["rewards"] == pytest.approx([0.1 * utility + 1], abs=1e-5)


@in_loop
async def test_without_seeds_noise_is_random_and_the_reply_says_from_what(golden_model, cases) -> None:
    async with serving(golden_model) as client:
        blob = safetensors.torch.save(tensors(cases))
        first, second = (await post(client, blob)).json(), (await post(client, blob)).json()
        assert first["raw_scores"] != second["raw_scores"] and first["seeds"] != second["seeds"]
        again = await post(client, safetensors.torch.save(tensors(cases, seeds=torch.tensor(first["seeds"]))))
    assert again.json()["raw_scores"] == first["raw_scores"]
    assert 0 <= first["seeds"][0] < 2**53


@in_loop
async def test_a_batch_has_a_level_and_a_seed_for_each_sample(golden_model, cases) -> None:
    u, seeds = [0.1, 0.9, 0.4], [5, 5, 2**40]
    blob = safetensors.torch.save(tensors(cases, 3, u=torch.tensor(u), seeds=torch.tensor(seeds)))
    async with serving(golden_model) as client:
        together = (await post(client, blob)).json()
        alone = [await strict_score(client, *sample(cases, i), u[i], seeds[i]) for i in range(3)]
    assert together["protocol_version"] == "1" and together["seeds"] == seeds
    assert together["raw_scores"] == pytest.approx(alone, abs=1e-5)
    assert alone == pytest.approx([local(golden_model, cases, i, u[i], seeds[i]) for i in range(3)], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@in_loop
async def test_short_numbers_are_taken_for_what_they_are(golden_model, cases, dtype) -> None:
    short = {name: tensor.to(dtype) for name, tensor in tensors(cases).items()}
    wide = {name: tensor.float() for name, tensor in short.items()}
    async with serving(golden_model) as client:
        seeds = {"seeds": torch.tensor([1])}
        answers = [await post(client, safetensors.torch.save(sent | seeds)) for sent in (short, wide)]
        mixed = await post(client, safetensors.torch.save(tensors(cases) | {"latents": short["latents"]} | seeds))
    assert answers[0].json() == answers[1].json() and mixed.status_code == 200


@in_loop
async def test_many_clients_at_once_each_get_their_own_score(golden_model, cases) -> None:
    wanted = [(i % 3, (i % 10) / 10, i, i % 2) for i in range(48)]
    async with serving(golden_model, max_batch_size=8) as client:
        found = await asyncio.gather(
            *(strict_score(client, *sample(cases, place, case), u, seed) for place, u, seed, case in wanted)
        )
    assert found == pytest.approx([local(golden_model, cases, p, u, s, c) for p, u, s, c in wanted], abs=1e-5)


@in_loop
async def test_health_is_503_until_the_model_is_there(golden_model) -> None:
    async with serving(None) as client:
        response = await client.get("/healthz")
        assert (response.status_code, response.json()) == (503, {"status": "loading"})
        assert (await client.head("/healthz")).status_code == 503
        client.pool.add("tiny", golden_model)
        response = await client.get("/healthz")
        assert (response.status_code, response.json()) == (200, {"status": "ready"})
        head = await client.head("/healthz")
        assert (head.status_code, head.headers["content-type"]) == (200, response.headers["content-type"])


@in_loop
async def test_while_loading_a_score_is_asked_for_again_later(golden_model, cases) -> None:
    async with serving(None) as client:
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def load():
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(20)
            return golden_model

        loading = client.pool.load("tiny", load)
        response = await post(client, safetensors.torch.save(tensors(cases)))
        assert error_of(response) == (503, "loading") and int(response.headers["retry-after"]) >= 1
        release.set()
        await loading
        assert (await post(client, safetensors.torch.save(tensors(cases)))).status_code == 200


def nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = float("nan")
    return changed


WRONG = {
    "no u": lambda t: {k: v for k, v in t.items() if k != "u"},
    "no pooled": lambda t: {k: v for k, v in t.items() if k != "pooled_prompt_embeds"},
    "extra": lambda t: t | {"sigma": torch.zeros(1)},
    "unknown": lambda t: t | {"latent": torch.zeros(1)},
    "rank of latents": lambda t: t | {"latents": t["latents"][0]},
    "rank of u": lambda t: t | {"u": torch.zeros(1, 1)},
    "scalar u": lambda t: t | {"u": torch.tensor(0.4)},
    "channels": lambda t: t | {"latents": torch.zeros(1, 4, 16, 16)},
    "odd sides": lambda t: t | {"latents": torch.zeros(1, 16, 15, 16)},
    "sides beyond positions": lambda t: t | {"latents": torch.zeros(1, 16, 16, 1024)},
    "width of prompt": lambda t: t | {"prompt_embeds": torch.zeros(1, 205, 47)},
    "width of pooled": lambda t: t | {"pooled_prompt_embeds": torch.zeros(1, 41)},
    "batch of prompts": lambda t: t | {"prompt_embeds": torch.zeros(2, 205, 48)},
    "batch of u": lambda t: t | {"u": torch.zeros(2)},
    "batch of seeds": lambda t: t | {"seeds": torch.zeros(2, dtype=torch.int64)},
    "nan in latents": lambda t: t | {"latents": nan(t["latents"])},
    "nan in prompt": lambda t: t | {"prompt_embeds": nan(t["prompt_embeds"])},
    "nan in pooled": lambda t: t | {"pooled_prompt_embeds": nan(t["pooled_prompt_embeds"])},
    "nan u": lambda t: t | {"u": torch.tensor([float("nan")])},
    "inf in latents": lambda t: t | {"latents": t["latents"] * float("inf")},
    "beyond all measure": lambda t: t | {"latents": torch.full_like(t["latents"], 1e7)},
    "u above": lambda t: t | {"u": torch.tensor([1.001])},
    "u below": lambda t: t | {"u": torch.tensor([-0.001])},
    "negative seed": lambda t: t | {"seeds": torch.tensor([-1])},
    "float seeds": lambda t: t | {"seeds": torch.tensor([1.0])},
    "int latents": lambda t: t | {"latents": t["latents"].long()},
    "double latents": lambda t: t | {"latents": t["latents"].double()},
    "int32 seeds": lambda t: t | {"seeds": torch.tensor([1], dtype=torch.int32)},
    "long prompt": lambda t: t | {"prompt_embeds": torch.zeros(1, 3000, 48)},
    "large latents": lambda t: t | {"latents": torch.zeros(1, 16, 1024, 256, dtype=torch.float16)},
}


@pytest.mark.parametrize("name", WRONG)
@in_loop
async def test_wrong_tensors_are_400_and_leave_their_neighbours_alone(golden_model, cases, name) -> None:
    wrong = safetensors.torch.save({k: v.contiguous() for k, v in WRONG[name](tensors(cases)).items()})
    async with serving(golden_model, max_wait_ms=20.0) as client:
        good = [strict_score(client, *sample(cases, place), 0.4, place) for place in range(3)]
        response, *found = await asyncio.gather(post(client, wrong), *good)
    assert error_of(response) == (400, "bad_input")
    assert found == pytest.approx([local(golden_model, cases, place, 0.4, place) for place in range(3)], abs=1e-5)


@in_loop
async def test_bytes_that_are_no_blob_are_400(golden_model, cases) -> None:
    whole = safetensors.torch.save(tensors(cases))
    lying = (len(whole) * 2).to_bytes(8, "little") + whole[8:]
    async with serving(golden_model) as client:
        for blob in (b"", b"{}", b"not a blob at all", whole[:-1], whole[: len(whole) // 2], whole + b"\0", lying):
            assert error_of(await post(client, blob)) == (400, "bad_input")


@in_loop
async def test_other_versions_types_methods_and_models_have_their_own_status(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    async with serving(golden_model) as client:
        for version in ("2", "", "1.0", "one"):
            response = await post(client, blob, **{"x-drm-protocol-version": version})
            assert error_of(response) == (426, "wrong_protocol_version")
            assert response.headers["x-drm-protocol-version"] == "1"
        response = await client.post("/v1/score", content=blob, headers={"content-type": HEADERS["content-type"]})
        assert error_of(response) == (426, "wrong_protocol_version")
        for kind in ("application/json", "text/plain", ""):
            response = await post(client, blob, **{"content-type": kind})
            assert error_of(response) == (415, "wrong_content_type")
        assert (await post(client, blob, **{"content-type": "Application/Octet-Stream; x=1"})).status_code == 200
        assert error_of(await client.get("/v1/score")) == (405, "method_not_allowed")
        assert error_of(await post(client, blob, **{"x-drm-model": "other"})) == (404, "unknown_model")
        assert (await post(client, blob, **{"x-drm-model": "tiny"})).status_code == 200


@in_loop
async def test_a_body_that_is_too_large_is_413(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    async with serving(golden_model, ServeSettings(max_body_bytes=len(blob))) as client:
        assert (await post(client, blob)).status_code == 200
        assert error_of(await post(client, blob + b"\0")) == (413, "too_large")
        # Without a declared length it is counted as it comes.
        status, _, _ = await call(client.app, "/v1/score", [blob, b"\0"], HEADERS)
        assert status == 413
        status, _, _ = await call(client.app, "/v1/score", [], HEADERS | {"content-length": "9" * 5000})
        assert status == 413
        assert (await post(client, blob)).status_code == 200


@in_loop
async def test_a_body_that_never_ends_is_408_and_ends_the_connection(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    settings = ServeSettings(body_timeout=0.05, body_bytes_per_second=1e9)
    async with serving(golden_model, settings) as client:
        status, headers, body = await call(client.app, "/v1/score", [blob[:100]], HEADERS, hang=True)
        assert status == 408 and headers["connection"] == "close" and b"slow_body" in body
        assert (await call(client.app, "/v1/score", [blob], HEADERS))[0] == 200


@in_loop
async def test_a_utility_that_is_not_finite_is_500_and_never_a_score(golden_model, cases) -> None:
    model = copy.copy(golden_model)

    def read(reading, *options):
        if bool((reading.state.noised_latents.abs() > 1000).any()):
            raise WorkError("the model gave 1 utilities that are not finite")
        return golden_model.read(reading, *options)

    model.read = read
    bad = tensors(cases, latents=torch.full((1, 16, 16, 16), 1e5))
    async with serving(model, max_wait_ms=20.0) as client:
        good = strict_score(client, *sample(cases, 1), 0.4, 1)
        response, found = await asyncio.gather(post(client, safetensors.torch.save(bad)), good)
    assert error_of(response) == (500, "work_failed")
    assert found == pytest.approx(local(golden_model, cases, 1, 0.4, 1), abs=1e-5)


@in_loop
async def test_a_full_queue_is_429_and_says_when_to_come_again(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    async with serving(golden_model, max_queue=2) as client:
        engine = client.pool.engine()
        async with engine.admit(client="other", states=2):
            response = await post(client, blob)
            assert error_of(response) == (429, "queue_full") and int(response.headers["retry-after"]) >= 1
        assert (await post(client, blob)).status_code == 200


@in_loop
async def test_nothing_is_moved_to_the_device_before_there_is_a_place_for_it(golden_model, cases) -> None:
    model = Placed(golden_model)
    async with serving(model, max_queue=2) as client:
        async with client.pool.engine().admit(client="other"):
            response = await post(client, safetensors.torch.save(tensors(cases, 2)))
        assert error_of(response) == (429, "queue_full") and not model.asked
        assert (await post(client, safetensors.torch.save(tensors(cases, 2)))).status_code == 200 and model.asked


class Placed:
    """A model that notices when somebody asks where it is.

    Attributes:
        asked: how often.
    """

    def __init__(self, model) -> None:
        self.model, self.asked = model, 0

    def __getattr__(self, name: str):
        self.asked += name == "device"
        return getattr(self.model, name)


@in_loop
async def test_a_deadline_in_the_header_is_kept(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    async with serving(golden_model, max_wait_ms=1e6) as client:  # for company that never comes
        late = await post(client, blob, **{"x-drm-deadline-ms": "20"})
        assert error_of(late) == (504, "deadline")
        assert client.pool.engine().accepted == 0
        for wrong in ("-1", "0", "soon", "9" * 30):
            assert error_of(await post(client, blob, **{"x-drm-deadline-ms": wrong}))[0] == 400


@in_loop
async def test_a_client_that_hangs_up_takes_its_work_along(golden_model, cases) -> None:
    blob = safetensors.torch.save(tensors(cases))
    async with serving(golden_model, max_wait_ms=10_000.0) as client:
        engine, parts, sent = client.pool.engine(), [blob], []

        async def receive():
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            while not engine.accepted:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = scope_of("/v1/score", HEADERS)
        await client.app(scope, receive, send)
        assert sent[0]["status"] == 499 and engine.accepted == 0
