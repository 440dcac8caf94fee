"""What the server answers: scores as the local model gives them, and a reason for everything it refuses."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import threading
import warnings
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from pydantic import SecretStr

from dina_lrm.errors import PromptCutWarning, WorkError
from dina_lrm.noise import Adaptive
from dina_lrm.noise.draws import SeededNoise
from dina_lrm.scoring.wire import ComparisonReply, RankingReply, RewardReply, ScoreRequest, pack
from dina_lrm.serve.desk import Desk
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings
from dina_lrm.types import Conditioning, NoisedState
from tests.serve.fake import PATIENCE, in_loop, settle
from tests.serve.serving import base64_of, call, error_of, file_of, random_picture, scope_of, serving

BLOB = {"content-type": "application/octet-stream"}
KEY = "a-key-of-more-than-sixteen"
PROMPT = "a girl walking in the street"


def pictures(count: int = 2) -> list[Image.Image]:
    return [random_picture(seed) for seed in range(count)]


def words(count: int = 2, **options: Any) -> dict[str, Any]:
    return {"prompts": [PROMPT], "images": [base64_of(picture) for picture in pictures(count)], **options}


def same(found: RewardReply, wanted: Any) -> bool:
    record = found.record()
    return all(
        torch.allclose(getattr(record, name), getattr(wanted, name), atol=1e-5, equal_nan=True)
        for name in ("reward", "utility", "utility_std", "standard_error", "draws", "sigmas", "spent")
    )


@pytest.mark.parametrize(
    ("options", "local"),
    [
        ({}, {}),
        ({"sigmas": [0.2, 0.7], "draws": 2, "seed": 5}, {"sigmas": (0.2, 0.7), "draws": 2, "seed": 5}),
        ({"sigmas": [0.2, 0.5, 0.7], "fusion": "tokens"}, {"sigmas": (0.2, 0.5, 0.7), "fusion": "tokens"}),
        ({"sigmas": [0.2, 0.7], "fusion": "weighted"}, {"sigmas": (0.2, 0.7), "fusion": "weighted"}),
        ({"draws": 4, "antithetic": True, "seed": [1, 2]}, {"draws": 4, "antithetic": True, "seed": (1, 2)}),
        ({"adaptive": {"max_draws": 5, "standard_error": 0.01}}, {"draws": Adaptive(5, standard_error=0.01)}),
    ],
)
@in_loop
async def test_pictures_are_scored_as_here(golden_model, options, local) -> None:
    with torch.no_grad():
        wanted = golden_model.score(prompts=[PROMPT], images=pictures(), **local)
    async with serving(golden_model) as client:
        response = await client.post("/v1/score_images", json=words(**options))
    assert response.status_code == 200, response.text
    found = RewardReply.model_validate_json(response.content)
    assert same(found, wanted) and found.model == "tiny" and found.record().seed == wanted.seed


@in_loop
async def test_pictures_of_several_sizes_and_kinds_are_scored_in_their_order(golden_model) -> None:
    several = [random_picture(0, 64, 96), random_picture(1), random_picture(2, 64, 96).convert("RGBA")]
    prompts = ["a", "b", "c"]
    with torch.no_grad():
        wanted = golden_model.score(prompts=prompts, images=several)
    async with serving(golden_model) as client:
        parts = [("images", (f"{i}.png", file_of(p), "image/png")) for i, p in enumerate(several)]
        form = await client.post("/v1/score_images", data={"request": json.dumps({"prompts": prompts})}, files=parts)
        blob = {f"image.{i}": torch.frombuffer(bytearray(file_of(p)), dtype=torch.uint8) for i, p in enumerate(several)}
        packed = await client.post(
            "/v1/score_latents", content=pack(blob, {"request": json.dumps({"prompts": prompts})}), headers=BLOB
        )
    for response in (form, packed):
        assert response.status_code == 200, response.text
        assert same(RewardReply.model_validate_json(response.content), wanted)


@in_loop
async def test_latents_pixels_states_and_noise_travel_in_a_blob(golden_model, cases) -> None:
    given = Conditioning(cases["text.128.prompt_embeds"], cases["text.128.pooled"])
    prompts = {"prompt_embeds": given.prompt_embeds, "pooled_prompt_embeds": given.pooled_prompt_embeds}
    latents, noise = cases["0.latents"], cases["0.noise"]
    pixels = torch.rand(3, 3, 64, 64)
    state = NoisedState(0.6 * latents + 0.4 * noise, torch.tensor([0.4, 0.4, 0.4]))
    mixed = NoisedState(state.noised_latents, torch.tensor([0.1, 0.4, 0.9]))
    with torch.no_grad():
        wanted = [
            golden_model.score(latents=latents, conditioning=given, sigmas=(0.2, 0.5), seed=(4, 5, 6)),
            golden_model.score(latents=latents, conditioning=given, noise=noise),
            golden_model.score(latents=latents, conditioning=given[:1]),
            golden_model.score(images=pixels, conditioning=given),
            golden_model.score_state(state, given),
            golden_model.score_state(mixed, given[:1]),
        ]
    blobs = [
        pack({"latents": latents, **prompts}, {"request": json.dumps({"sigmas": [0.2, 0.5], "seed": [4, 5, 6]})}),
        pack({"latents": latents, "noise": noise, **prompts}),
        pack({"latents": latents, **{name: tensor[:1] for name, tensor in prompts.items()}}),
        pack({"pixels": pixels, **prompts}),
        pack({"noised_latents": state.noised_latents, "sigma": state.sigma, **prompts}),
        pack({"noised_latents": mixed.noised_latents, "sigma": mixed.sigma} | {n: t[:1] for n, t in prompts.items()}),
    ]
    async with serving(golden_model) as client:
        for blob, local in zip(blobs, wanted, strict=True):
            response = await client.post("/v1/score_latents", content=blob, headers=BLOB)
            assert response.status_code == 200, response.text
            found = RewardReply.model_validate_json(response.content)
            assert same(found, local) and found.record().seed == local.seed


@in_loop
async def test_comparisons_and_rankings_are_those_of_here(golden_model) -> None:
    a, b = pictures()
    options = {"sigmas": [0.2, 0.7], "seed": 3, "tie_band": 0.1}
    local = {"sigmas": (0.2, 0.7), "seed": 3, "tie_band": 0.1}
    compared = golden_model.compare(prompt=PROMPT, a=a, b=b, **local)
    ranked = golden_model.rank(prompt=PROMPT, images=pictures(4), draws=3, **local)
    async with serving(golden_model) as client:
        body = {"prompt": PROMPT, "images": [base64_of(a), base64_of(b)], **options}
        response = await client.post("/v1/compare", json=body)
        assert response.status_code == 200, response.text
        found = ComparisonReply.model_validate_json(response.content)
        assert found.verdict == compared.verdict and found.seed == 3
        for name, value in vars(compared).items():
            assert getattr(found.record(), name) == pytest.approx(value, abs=1e-5)
        body = {"prompt": PROMPT, "images": words(4)["images"], "draws": 3, **options}
        response = await client.post("/v1/rank", json=body)
        assert response.status_code == 200, response.text
        ranking = RankingReply.model_validate_json(response.content)
        assert ranking.record().order == ranked.order and same(ranking.reward, ranked.reward)
        assert ranking.lead is not None and ranked.lead is not None
        assert ranking.lead.probability == pytest.approx(ranked.lead.probability, abs=1e-5)
        one = await client.post("/v1/rank", json={"prompt": PROMPT, "images": words(1)["images"]})
        assert one.json()["order"] == [0] and one.json()["lead"] is None


@in_loop
async def test_latents_are_compared_and_ranked_too(golden_model, cases) -> None:
    prompt = {
        "prompt_embeds": cases["text.128.prompt_embeds"][:1],
        "pooled_prompt_embeds": cases["text.128.pooled"][:1],
    }
    given, latents = Conditioning(*prompt.values()), cases["0.latents"]
    compared = golden_model.compare(conditioning=given, a=latents[0], b=latents[1])
    ranked = golden_model.rank(conditioning=given, latents=latents)
    async with serving(golden_model) as client:
        response = await client.post("/v1/compare", content=pack({"latents": latents[:2], **prompt}), headers=BLOB)
        assert response.json()["probability"] == pytest.approx(compared.probability, abs=1e-5)
        response = await client.post("/v1/rank", content=pack({"latents": latents, **prompt}), headers=BLOB)
        assert tuple(response.json()["order"]) == ranked.order


@in_loop
async def test_without_a_seed_the_server_draws_one_and_names_it(golden_model) -> None:
    async with serving(golden_model) as client:
        for path, body in (
            ("/v1/score_images", words(seed=None)),
            ("/v1/compare", {"prompt": PROMPT, "images": words()["images"], "seed": None}),
            ("/v1/rank", {"prompt": PROMPT, "images": words()["images"], "seed": None}),
        ):
            first = (await client.post(path, json=body)).json()
            second = (await client.post(path, json=body)).json()
            seed = (first.get("reward") if path == "/v1/rank" else first)["seed"]
            assert first != second
            assert (await client.post(path, json=body | {"seed": seed})).json() == first


IMAGE = base64_of(random_picture(0))
WRONG_WORDS: dict[str, tuple[str, Any, int, str]] = {
    "no JSON": ("/v1/score_images", b"{", 400, "bad_json"),
    "nothing": ("/v1/score_images", b"", 400, "bad_json"),
    "no UTF-8": ("/v1/score_images", b'{"prompts": ["\xff"]}', 400, "bad_json"),
    "a list": ("/v1/score_images", [], 422, "bad_input"),
    "a key that is unknown": ("/v1/score_images", words(sigma=0.4), 422, "bad_input"),
    "a text for a number": ("/v1/score_images", words(draws="1"), 422, "bad_input"),
    "a truth for a number": ("/v1/score_images", words(draws=True), 422, "bad_input"),
    "sigma above 1": ("/v1/score_images", words(sigmas=[1.1]), 422, "bad_input"),
    "no sigma": ("/v1/score_images", words(sigmas=[]), 422, "bad_input"),
    "not a number": ("/v1/score_images", b'{"prompts": ["a"], "sigmas": [NaN]}', 422, "bad_input"),
    "no draws": ("/v1/score_images", words(draws=0), 422, "bad_input"),
    "a million draws": ("/v1/score_images", words(draws=10**6), 422, "bad_input"),
    "a budget too large": ("/v1/score_images", words(draws=1024, sigmas=[0.1] * 64), 422, "bad_input"),
    "a seed below 0": ("/v1/score_images", words(seed=-1), 422, "bad_input"),
    "a seed of 64 bits": ("/v1/score_images", words(seed=2**63), 422, "bad_input"),
    "three seeds for two": ("/v1/score_images", words(seed=[1, 2, 3]), 422, "bad_input"),
    "odd antithetic draws": ("/v1/score_images", words(draws=3, antithetic=True), 422, "bad_input"),
    "adaptive without an aim": ("/v1/score_images", words(adaptive={}), 422, "bad_input"),
    "a fusion that is none": ("/v1/score_images", words(fusion="median"), 422, "bad_input"),
    "no images": ("/v1/score_images", words(0), 422, "bad_input"),
    "no prompts": ("/v1/score_images", words() | {"prompts": []}, 422, "bad_input"),
    "three prompts for two": ("/v1/score_images", words() | {"prompts": ["a", "b", "c"]}, 422, "bad_input"),
    "a prompt of a book": ("/v1/score_images", words() | {"prompts": ["a" * 20_001]}, 422, "bad_input"),
    "half a character": ("/v1/score_images", b'{"prompts": ["\\ud800"], "images": ["AA=="]}', 400, "bad_json"),
    "no base64": ("/v1/score_images", words() | {"images": ["%%%", IMAGE]}, 422, "bad_input"),
    "no picture": ("/v1/score_images", words() | {"images": ["AAAA", IMAGE]}, 422, "bad_input"),
    "half a picture": ("/v1/score_images", words() | {"images": [IMAGE[: len(IMAGE) // 8 * 4]]}, 422, "bad_input"),
    "an unknown model": ("/v1/score_images", words(model="other"), 404, "unknown_model"),
    "one to compare": ("/v1/compare", {"prompt": "a", "images": [IMAGE]}, 422, "bad_input"),
    "three to compare": ("/v1/compare", {"prompt": "a", "images": [IMAGE] * 3}, 422, "bad_input"),
    "seeds to compare": ("/v1/compare", {"prompt": "a", "images": [IMAGE] * 2, "seed": [1, 2]}, 422, "bad_input"),
    "a tie band of half": ("/v1/compare", {"prompt": "a", "images": [IMAGE] * 2, "tie_band": 0.5}, 422, "bad_input"),
    "none to rank": ("/v1/rank", {"prompt": "a", "images": []}, 422, "bad_input"),
    "no prompt to rank by": ("/v1/rank", {"images": [IMAGE]}, 422, "bad_input"),
    "no time at all": ("/v1/rank", {"prompt": "a", "images": [IMAGE], "deadline_ms": 0}, 422, "bad_input"),
    "no route": ("/v1/nothing", {}, 404, "not_found"),
}


@in_loop
async def test_wrong_words_are_told_with_their_status_and_leave_others_alone(golden_model) -> None:
    with torch.no_grad():
        wanted = golden_model.score(prompts=[PROMPT], images=pictures())
    async with serving(golden_model) as client:
        for name, (path, body, status, kind) in WRONG_WORDS.items():
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = await client.post(path, content=content, headers={"content-type": "application/json"})
            assert error_of(response) == (status, kind), f"{name}: {response.text}"
        right = await client.post("/v1/score_images", json=words())
        assert same(RewardReply.model_validate_json(right.content), wanted)
        assert client.pool.engine().accepted == 0


@in_loop
async def test_wrong_blobs_are_400(golden_model, cases) -> None:
    latents, prompt = cases["0.latents"][:1], cases["text.128.prompt_embeds"][:1]
    whole = {"latents": latents, "prompt_embeds": prompt, "pooled_prompt_embeds": cases["text.128.pooled"][:1]}
    file = torch.frombuffer(bytearray(file_of(random_picture(0))), dtype=torch.uint8)
    asked = {"prompts": ["a"]}
    wrong: list[tuple[dict[str, torch.Tensor], Any]] = [
        ({}, {}),
        (whole, {"unknown": 1}),
        (whole, {"images": ["AAAA"]}),
        (whole, asked),
        ({"latents": latents}, {}),
        ({"latents": latents, "pooled_prompt_embeds": whole["pooled_prompt_embeds"]}, asked),
        (whole | {"pixels": torch.zeros(1, 3, 64, 64)}, {}),
        (whole | {"u": torch.zeros(1), "extra": torch.zeros(1)}, {}),
        (whole | {"sigma": torch.zeros(1)}, {}),
        (whole | {"noise": torch.zeros(1, 16, 16, 24)}, {}),
        (whole | {"noise": torch.zeros_like(latents)}, {"draws": 2}),
        ({"noised_latents": latents, "prompt_embeds": prompt}, {}),
        (whole | {"prompt_mask": torch.ones(1, 205)}, {}),
        ({"image.1": file}, asked),
        ({"image.0": file, "image.00": file}, asked),
        ({"image.0": file.float()}, asked),
        ({"image.0": file.view(1, -1)}, asked),
        ({"pixels": torch.zeros(1, 4, 64, 64)}, asked),
        ({"pixels": torch.full((1, 3, 64, 64), 1.5)}, asked),
        ({"pixels": torch.zeros(1, 3, 60, 64)}, asked),
    ]
    async with serving(golden_model) as client:
        for blob, options in wrong:
            content = pack(blob, {"request": json.dumps(options)})
            response = await client.post("/v1/score_latents", content=content, headers=BLOB)
            assert error_of(response) == (400, "bad_input"), (blob.keys(), options, response.text)
        for text in ("{", "[]", "null", '"a"', "\ud800"):
            response = await client.post("/v1/score_latents", content=pack(whole, {"request": text}), headers=BLOB)
            assert error_of(response)[0] == 400, text
        state = {
            "noised_latents": latents,
            "prompt_embeds": prompt,
            "pooled_prompt_embeds": whole["pooled_prompt_embeds"],
        }
        for sigma in (torch.tensor([1.1]), torch.tensor([0.1, 0.2])):
            response = await client.post("/v1/score_latents", content=pack(state | {"sigma": sigma}), headers=BLOB)
            assert error_of(response) == (400, "bad_input")
        assert (await client.post("/v1/score_latents", content=pack(whole), headers=BLOB)).status_code == 200


@in_loop
async def test_wrong_forms_are_told(golden_model) -> None:
    file = ("a.png", file_of(random_picture(0)), "image/png")
    request = {"request": json.dumps({"prompts": ["a"]})}
    async with serving(golden_model) as client:

        async def post(data: Any, files: Any) -> httpx2.Response:
            return await client.post("/v1/score_images", data=data, files=files)

        assert (await post(request, [("images", file)])).status_code == 200
        assert error_of(await post({}, [("images", file)])) == (400, "bad_input")
        assert error_of(await post(request | {"more": "x"}, [("images", file)])) == (400, "bad_input")
        assert error_of(await post({"request": "{"}, [("images", file)])) == (400, "bad_json")
        assert error_of(await post({"request": '{"images": ["AAAA"]}'}, [("images", file)])) == (422, "bad_input")
        assert error_of(await post(request, [("images", ("a", b"x", "image/png"))])) == (422, "bad_input")
        for kind, body in (
            ("multipart/form-data", b"--a\r\n"),
            ("multipart/form-data; boundary=a", b""),
            ("multipart/form-data; boundary=a", b"--a\r\ncontent-disposition: form-data; name=request\r\n\r\n{}"),
            ("multipart/form-data; boundary=a", b"--a\r\n\r\nbody\r\n--a--\r\n"),
            ("multipart/form-data; boundary=" + "a" * 500, b"--a"),
        ):
            response = await client.post("/v1/score_images", content=body, headers={"content-type": kind})
            assert error_of(response)[0] == 400, (kind, body, response.text)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "image/png"):
            response = await client.post("/v1/score_images", content=b"{}", headers={"content-type": kind})
            assert error_of(response) == (415, "wrong_content_type")


@in_loop
async def test_a_bomb_is_refused_by_its_header(golden_model) -> None:
    many = file_of(Image.new("1", (20_000, 20_000)))  # 400 million pixels in 50 kB
    long = file_of(Image.new("1", (1, 200_000)))
    async with serving(golden_model) as client:

        async def post(*files: bytes) -> httpx2.Response:
            parts = [("images", (f"{i}.png", file, "image/png")) for i, file in enumerate(files)]
            return await client.post("/v1/score_images", data={"request": '{"prompts": ["a"]}'}, files=parts)

        assert error_of(await post(many)) == (413, "too_many_pixels")
        assert error_of(await post(long)) == (422, "bad_input")
    async with serving(golden_model, ServeSettings(max_pixels=5000, max_request_pixels=9000)) as client:
        small = file_of(random_picture(0))
        assert (await post(small, small)).status_code == 200
        assert error_of(await post(small, small, small)) == (413, "too_many_pixels")
        assert error_of(await post(file_of(random_picture(0, 100, 100)))) == (413, "too_many_pixels")


@in_loop
async def test_too_many_candidates_are_refused(golden_model) -> None:
    async with serving(golden_model, ServeSettings(max_samples=2)) as client:
        assert (await client.post("/v1/score_images", json=words(2))).status_code == 200
        assert error_of(await client.post("/v1/score_images", json=words(3))) == (422, "bad_input")


@in_loop
async def test_a_key_is_needed_where_keys_are_set(golden_model) -> None:
    settings = ServeSettings(api_keys=(SecretStr(KEY), SecretStr("another-key-of-the-server")))
    async with serving(golden_model, settings) as client:
        for path in ("/healthz", "/health", "/", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/metrics", "/v1/models", "/rewards"):
            response = await client.get(path)
            assert error_of(response) == (401, "unauthorized") and response.headers["www-authenticate"] == "Bearer"
            assert (await client.get(path, headers={"authorization": f"Bearer {KEY}"})).status_code == 200
            assert (await client.get(path, headers={"x-api-key": KEY})).status_code == 200
        for headers in (
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer"},
            {"x-api-key": ""},
            {"x-api-key": KEY[:-1]},
        ):
            assert error_of(await client.get("/v1/models", headers=headers)) == (401, "unauthorized")
        status, _, _ = await call(client.app, "/v1/score", hang=True)  # refused before its body
        assert status == 401


@in_loop
async def test_only_own_names_are_answered_to(golden_model) -> None:
    settings = ServeSettings().guarded()
    async with serving(golden_model, settings) as client:
        for host in ("127.0.0.1:8000", "localhost", "[::1]:80"):
            assert (await client.get("/healthz", headers={"host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            assert error_of(await client.get("/healthz", headers={"host": host})) == (421, "wrong_host")


@in_loop
async def test_a_server_without_keys_that_was_told_its_names_is_reached_by_no_page_under_another(golden_model) -> None:
    settings = ServeSettings(host="0.0.0.0", no_auth=True, allowed_hosts=("rewards.example",)).guarded()
    async with serving(golden_model, settings) as client:
        for host, status in (("evil.example", 421), ("rewards.example:8000", 200), ("127.0.0.1", 200)):
            # A name that leads here makes a page of that name this server's own, as far as a browser can tell.
            page = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
            assert (await client.post("/v1/score_images", json=words(1), headers=page)).status_code == status


@in_loop
async def test_models_come_and_go_only_where_that_is_allowed(golden_model, golden) -> None:
    wanted = {"name": "other", "path": str(golden / "reward"), "base": str(golden / "pipeline")}
    async with serving(golden_model) as client:
        assert error_of(await client.post("/v1/models", json=wanted)) == (403, "forbidden")
        assert error_of(await client.delete("/v1/models/tiny")) == (403, "forbidden")
        listed = (await client.get("/v1/models")).json()["models"]
        assert [(one["name"], one["state"], one["default"]) for one in listed] == [("tiny", "ready", True)]
    settings = ServeSettings(api_keys=(SecretStr(KEY),), allow_load=True)
    async with serving(golden_model, settings, {"x-api-key": KEY}) as client:
        for wrong in ({}, wanted | {"name": "../x"}, wanted | {"dtype": "int8"}):
            assert error_of(await client.post("/v1/models", json=wrong)) == (422, "bad_input")
        assert error_of(await client.post("/v1/models", json=wanted | {"name": "tiny"})) == (409, "name_taken")
        response = await client.post("/v1/models", json=wanted)
        assert (response.status_code, response.json()["state"]) == (202, "loading")
        while (entry := (await client.get("/v1/models")).json()["models"][1])["state"] == "loading":
            await asyncio.sleep(0.02)
        assert entry["state"] == "ready" and entry["revision"]
        body = {"prompt": "a", "images": words()["images"]}
        answers = [await client.post("/v1/compare", json=body | {"model": name}) for name in ("tiny", "other")]
        assert answers[0].json()["probability"] == pytest.approx(answers[1].json()["probability"], abs=1e-6)
        assert answers[1].json()["model"] == "other"
        assert (await client.delete("/v1/models/other")).json()["state"] == "unloaded"
        assert error_of(await client.post("/v1/compare", json=body | {"model": "other"})) == (404, "unknown_model")
        assert error_of(await client.delete("/v1/models/other")) == (404, "unknown_model")
        failing = wanted | {"name": "none", "path": "/nowhere/at/all"}
        assert (await client.post("/v1/models", json=failing)).status_code == 202
        while (entry := (await client.get("/v1/models")).json()["models"][1])["state"] == "loading":
            await asyncio.sleep(0.02)
        assert entry["state"] == "failed" and "nowhere" in entry["detail"]
        assert (await client.get("/healthz")).status_code == 200


@in_loop
async def test_trainers_are_answered_in_their_own_words(golden_model) -> None:
    with torch.no_grad():
        wanted = golden_model.score(prompts=["a", "b"], images=pictures()).reward.tolist()
    images = words()["images"]
    async with serving(golden_model) as client:
        assert (await client.get("/health")).json() == {"status": "ok", "rewards": {"tiny": ["ready"]}}
        assert (await client.get("/rewards")).json() == {"rewards": ["tiny"]}
        body = {"prompt": ["a", "b"], "image": images, "video": None, "condition_images": None, "kwargs": None}
        assert (await client.post("/compute", json=body)).json()["rewards"] == pytest.approx(wanted, abs=1e-5)
        assert error_of(await client.post("/compute", json=body | {"image": None})) == (422, "bad_input")
        assert error_of(await client.post("/compute", json=body | {"video": [images]})) == (422, "bad_input")
        assert error_of(await client.post("/compute", json=body | {"prompt": ["a"] * 3})) == (422, "bad_input")
        asked = [
            {"history": [{"text": "z", "image_b64": "?"}, {"text": t, "image_b64": i}], "required_rewards": ["tiny"]}
            for t, i in zip("ab", images, strict=True)
        ]
        bad = [
            {"history": [{"text": "a", "image_b64": "%%"}], "required_rewards": ["tiny"]},
            {"history": [{"text": "a", "video_b64": "AAAA"}], "required_rewards": ["tiny"]},
            {"history": [{"text": "a", "image_b64": images[0]}], "required_rewards": ["other"], "metadata": {"x": 1}},
        ]
        response = await client.post("/score", json={"requests": [*asked, *bad]})
        results, errors = response.json()["results"], response.json()["errors"]
        assert [one["tiny"]["tiny"] for one in results[:2]] == pytest.approx(wanted, abs=1e-5)
        assert results[2:] == [{}, {}, {}] and errors[:2] == [{}, {}]
        assert [list(one) for one in errors[2:]] == [["tiny"], ["tiny"], ["other"]]
        assert "base64" in errors[2]["tiny"] and "no model 'other'" in errors[4]["other"]
        for wrong in ({}, {"requests": []}, {"requests": [{"history": [], "required_rewards": ["tiny"]}]}):
            assert error_of(await client.post("/score", json=wrong)) == (422, "bad_input")
    async with serving(None) as client:
        assert error_of(await client.get("/health"))[0] == 503


@in_loop
async def test_the_documents_tell_of_every_route_and_fetch_nothing(golden_model) -> None:
    async with serving(golden_model) as client:
        schema = (await client.get("/openapi.json")).json()
        page = await client.get("/docs")
    for path in ("/v1/score", "/v1/score_images", "/v1/score_latents", "/v1/compare", "/v1/rank", "/healthz", "/score"):
        assert path in schema["paths"] and path in page.text
    content = schema["paths"]["/v1/score_images"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "application/octet-stream"}
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text


@in_loop
async def test_metrics_count_requests_and_errors(golden_model) -> None:
    async with serving(golden_model) as client:
        await client.post("/v1/compare", json={"prompt": "a", "images": words()["images"]})
        await client.post("/v1/compare", json={})
        await client.get("/no/such/route")
        text = (await client.get("/metrics")).text
    assert 'dina_lrm_requests_total{route="/v1/compare",status="200"} 1.0' in text
    assert 'dina_lrm_requests_total{route="/v1/compare",status="422"} 1.0' in text
    assert 'dina_lrm_requests_total{route="none",status="404"} 1.0' in text
    assert 'dina_lrm_errors_total{kind="bad_input"} 1.0' in text


@in_loop
async def test_an_answer_carries_the_request_s_name(golden_model) -> None:
    async with serving(golden_model) as client:
        assert (await client.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        made = (await client.get("/healthz", headers={"x-request-id": "a b"})).headers["x-request-id"]
        assert made != "a b" and len(made) == 16


@in_loop
async def test_a_fault_of_the_server_is_500_and_says_nothing_of_itself(golden_model, monkeypatch) -> None:
    async with serving(golden_model) as client:
        monkeypatch.setattr(client.pool.engine(), "admit", None)
        response = await client.post("/v1/compare", json={"prompt": "a", "images": words()["images"]})
        assert error_of(response) == (500, "internal") and "NoneType" not in response.text
        assert (await client.get("/healthz")).status_code == 200


@in_loop
async def test_junk_in_bulk_is_refused_before_it_is_made_into_anything(golden_model) -> None:
    async with serving(golden_model) as client:
        for junk in (b"1," * 500_000, b'"",' * 30_000):
            body = b'{"images": [], "prompts": [' + junk.rstrip(b",") + b"]}"
            response = await client.post("/v1/score_images", content=body, headers={"content-type": "application/json"})
            assert response.status_code == 422 and "more than 20000 values" in response.text
        response = await client.post("/v1/score_images", json={**words(1), "prompts": [1] * 3000})
        assert response.status_code == 422 and "more)" not in response.text  # the first fault ends the reading
        response = await client.post("/v1/score_images", json={**words(1), "prompts": [PROMPT] * 3000})
        assert response.status_code == 422 and "1 samples need 1 or 1 prompts, got 3000" in response.text
        response = await client.post("/v1/models", content=b"x" * 20_000, headers={"content-type": "application/json"})
        assert response.status_code in (403, 413)


@in_loop
async def test_what_no_queue_holds_is_refused_before_noise_is_drawn(golden_model, monkeypatch) -> None:
    def drawn(*_: Any) -> None:
        raise AssertionError("noise was drawn for a request that is refused")

    monkeypatch.setattr("dina_lrm.noise.ensembles.SeededNoise", drawn)
    async with serving(golden_model, max_queue=64) as client:
        response = await client.post("/v1/score_images", json=words(2, draws=64))
    assert response.status_code == 422 and "at most 64 are accepted" in response.text


@in_loop
async def test_noise_is_made_no_further_than_it_is_read_when_the_client_hangs_up(golden_model, monkeypatch) -> None:
    drawn, reading, gone, model = [], threading.Event(), threading.Event(), copy.copy(golden_model)
    draw = SeededNoise._draw
    monkeypatch.setattr(SeededNoise, "_draw", lambda noise: drawn.append(noise) or draw(noise))

    def read(*_: Any) -> None:
        reading.set()
        assert gone.wait(PATIENCE)
        raise WorkError("what is read of it is read in vain")

    model.read = read
    body = [json.dumps(words(1, draws=64)).encode()]
    async with serving(model, max_batch_size=2) as client:

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await settle(reading.is_set)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        await client.app(scope_of("/v1/score_images", {"content-type": "application/json"}), receive, send)
        gone.set()
        assert client.pool.engine().accepted == 0
    assert len(drawn) == 4 * 2  # four batches of two


@in_loop
async def test_states_that_are_made_bit_by_bit_are_those_that_are_made_at_once(golden_model, monkeypatch) -> None:
    options = {"sigmas": [0.2, 0.7], "draws": 6, "antithetic": True, "seed": [1, 2]}
    with torch.no_grad():
        wanted = golden_model.score(prompts=[PROMPT], images=pictures(), **(options | {"seed": (1, 2)}))
    drawn, draw = [], SeededNoise._draw
    monkeypatch.setattr(SeededNoise, "_draw", lambda noise: drawn.append(noise) or draw(noise))
    async with serving(golden_model, max_batch_size=1) as client:
        response = await client.post("/v1/score_images", json=words(**options))
    assert same(RewardReply.model_validate_json(response.content), wanted)
    assert len(drawn) == 2 * 3  # of each seed one a pair, none of them twice


@in_loop
async def test_a_tensor_or_an_option_that_would_not_be_read_is_refused_by_name(golden_model, cases) -> None:
    latents, sigma, one = cases["0.latents"][:2], torch.tensor([0.4, 0.4]), torch.ones(2)
    prompt = {
        "prompt_embeds": cases["text.128.prompt_embeds"][:1],
        "pooled_prompt_embeds": cases["text.128.pooled"][:1],
    }
    clean, state = {"latents": latents, **prompt}, {"noised_latents": latents, "sigma": sigma, **prompt}
    wrong: list[tuple[str, dict[str, torch.Tensor], dict[str, Any], str]] = [
        ("/v1/compare", state, {}, "noised_latents"),
        ("/v1/rank", state, {}, "noised_latents"),
        ("/v1/compare", clean | {"noise": latents}, {}, "noise"),
        ("/v1/rank", clean | {"sigma": sigma}, {}, "sigma"),
        ("/v1/score_latents", clean | {"u": one}, {}, "u"),
        ("/v1/score_latents", clean | {"seeds": torch.tensor([1, 2])}, {}, "seeds"),
        ("/v1/score_latents", state | {"u": one}, {}, "u"),
        ("/v1/attention", {"latents": latents}, {"prompt": PROMPT}, "latents"),
        ("/v1/score_latents", state, {"sigmas": [0.5]}, "sigmas"),
        ("/v1/score_latents", state, {"draws": 2}, "draws"),
        ("/v1/score_latents", state, {"seed": 7}, "seed"),
        ("/v1/score_latents", state, {"fusion": "tokens", "antithetic": True}, "fusion, antithetic"),
        ("/v1/score_latents", state, {"adaptive": {"standard_error": 0.1}}, "adaptive"),
    ]
    async with serving(golden_model) as client:
        for path, blob, options, name in wrong:
            content = pack(blob, {"request": json.dumps(options)})
            response = await client.post(path, content=content, headers=BLOB)
            assert error_of(response) == (400, "bad_input"), (path, options, response.text)
            told = (
                f"leave {name} out"
                if options and path != "/v1/attention"
                else f"holds '{name}', which would not be read"
            )
            assert told in response.text, response.text
        # What says no more than the defaults is no contradiction: clients send them.
        content = pack(state, {"request": ScoreRequest(deadline_ms=60_000).model_dump_json()})
        assert (await client.post("/v1/score_latents", content=content, headers=BLOB)).status_code == 200


@in_loop
async def test_decoded_pictures_of_all_requests_have_a_bound(golden_model) -> None:
    flat = base64_of(Image.new("RGB", (64, 64)))  # of few bytes until it is decoded
    body = {"prompts": [PROMPT], "images": [flat]}
    settings = ServeSettings(max_held_bytes=20_000, max_client_share=1)
    async with serving(golden_model, settings, max_wait_ms=60_000.0) as client:
        waiting = asyncio.create_task(client.post("/v1/score_images", json=body))
        await settle(lambda: client.pool.engine()._worker._batcher.states == 1)
        full = await client.post("/v1/score_images", json=body)
        assert error_of(full) == (429, "queue_full") and int(full.headers["retry-after"]) >= 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert client.pool.engine().accepted == 0
        again = asyncio.create_task(client.post("/v1/score_images", json=body))
        await settle(lambda: client.pool.engine()._worker._batcher.states == 1)
        again.cancel()
        await asyncio.wait([again])
        alone = await client.post("/v1/score_images", json={"prompts": [PROMPT], "images": [flat] * 2})
        assert error_of(alone) == (422, "bad_input") and "32768 bytes decoded" in alone.text


@in_loop
async def test_decoded_pictures_count_in_their_client_s_share(golden_model) -> None:
    flat = base64_of(Image.new("RGB", (64, 64)))  # 16,384 bytes decoded, a few hundred before
    settings = ServeSettings(max_held_bytes=60_000, max_client_share=0.5)
    async with serving(golden_model, settings, max_wait_ms=60_000.0) as client:

        def ask(name: str, count: int = 1) -> asyncio.Task[Any]:
            body = {"prompts": [PROMPT], "images": [flat] * count}
            return asyncio.create_task(client.post("/v1/score_images", json=body, headers={"x-client-id": name}))

        waiting = [ask("ann")]
        await settle(lambda: client.pool.engine()._worker._batcher.states == 1)
        more = await ask("ann")
        assert error_of(more) == (429, "queue_full") and "of the 30000 that one client may" in more.text
        waiting.append(ask("bob", 2))  # alone, a request may be as large as requests may be
        await settle(lambda: client.pool.engine()._worker._batcher.states == 3)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        gate = client.gate
        assert gate.held_bytes == 0 and not gate.held_by


@in_loop
async def test_threads_that_read_requests_take_a_core_each() -> None:
    desk, before = Desk(ModelPool(Observer()), ServeSettings(), Gate()), torch.get_num_threads()

    def looked() -> tuple[int, int]:
        torch.zeros(1)
        return threading.get_ident(), torch.get_num_threads()

    first = await desk.aside(threading.get_ident)
    torch.set_num_threads(before + 1)  # whoever sets them after that thread began
    try:
        while (found := await desk.aside(looked))[0] != first:
            pass
    finally:
        torch.set_num_threads(before)
    assert found[1] == 1
    desk.close()


@in_loop
async def test_of_a_request_to_several_models_nothing_goes_on_when_one_fails(golden_model) -> None:
    image = words(1)["images"][0]
    async with serving(golden_model, max_wait_ms=60_000.0) as client:
        sound, full = client.pool.engine(), client.pool.add("full", golden_model)
        async with full.admit(client="other", states=full.max_queue):
            asked = [{"history": [{"text": "a", "image_b64": image}], "required_rewards": ["tiny", "full"]}]
            response = await client.post("/score", json={"requests": asked})
            assert error_of(response) == (429, "queue_full")
            assert sound.accepted == 0 and sound._worker._batcher.states == 0


@in_loop
async def test_prompts_that_are_cut_are_told_of_in_every_reply_and_in_the_log(golden_model, heard) -> None:
    long, images = "far too long " * 200, words()["images"]
    golden = warnings.catch_warnings(category=PromptCutWarning, action="ignore")
    with golden, heard.at_level("INFO", "dina_lrm.serve"):
        async with serving(golden_model) as client:

            async def told(path: str, body: dict[str, Any]) -> tuple[Any, str | None]:
                response = await client.post(path, json=body)
                assert response.status_code == 200, response.text
                return response.json().get("prompts_cut"), response.headers.get("x-drm-prompts-cut")

            for _ in range(2):  # encoded, then remembered
                both = {"prompts": ["a", long], "images": images}
                assert await told("/v1/score_images", both) == ([1], "1")
            assert await told("/v1/compare", {"prompt": long, "images": images}) == ([0], "1")
            assert await told("/v1/rank", {"prompt": long, "images": images}) == ([0], "1")
            assert await told("/v1/rank", {"prompt": "a", "images": images}) == ([], None)
            assert await told("/v1/attention", {"prompt": long, "images": images[:1]}) == (None, "1")
            assert await told("/compute", {"prompt": ["a", long], "image": images}) == (None, "1")
            turn = {"history": [{"text": long, "image_b64": images[0]}], "required_rewards": ["tiny"]}
            assert await told("/score", {"requests": [turn, turn]}) == (None, "1")
    assert [record.facts.get("prompts_cut") for record in heard.records].count(1) == 7


@in_loop
async def test_the_log_tells_of_all_models_that_answer_a_request(golden_model, heard, monkeypatch) -> None:
    wide = copy.copy(golden_model)
    monkeypatch.setattr(wide, "cut_prompts", lambda prompts: [False] * len(prompts))
    long, images, settings = "far too long " * 200, words()["images"], ServeSettings(log_prompts=True)
    asked = [
        {"history": [{"text": long, "image_b64": images[0]}], "required_rewards": ["tiny", "wide"]},
        {"history": [{"text": "a", "image_b64": images[1]}], "required_rewards": ["wide"]},
    ]
    golden = warnings.catch_warnings(category=PromptCutWarning, action="ignore")
    with golden, heard.at_level("INFO", "dina_lrm.serve"):
        async with serving(golden_model, settings) as client:
            client.pool.add("wide", wide)
            assert (await client.post("/score", json={"requests": asked})).json()["errors"] == [{}, {}]
    facts = heard.records[-1].facts
    assert sorted(facts["model"].split(", ")) == ["tiny", "wide"] and facts["samples"] == 3
    assert sorted(facts["prompts"]) == ["a", long] and facts["prompts_cut"] == 1


@in_loop
async def test_a_field_that_is_not_known_is_answered_with_those_that_are(golden_model) -> None:
    async with serving(golden_model) as client:
        response = await client.post("/v1/score_images", json={"prompt": "a", "images": words()["images"]})
    assert response.status_code == 422
    assert re.match("prompt is not known here; a request may hold .*prompts", response.json()["error"]["message"])
