"""Valid inputs to begin with, for the tiny model of the test suite: small, so that many fit into a minute."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dina_lrm.scoring.wire import BLOB_TYPE, JSON_TYPE, PROTOCOL_HEADER, pack

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "sd3-tiny"
CHANNELS, SIDE, TOKENS, WIDTH, POOLED = 16, 4, 6, 48, 40


@dataclass(frozen=True)
class Seed:
    """A request that is answered with 200, and how it may be spoiled.

    Attributes:
        path: of its route.
        kind: content type.
        body: as it is sent.
        words: the JSON of the body, if it is JSON.
        parts: of a form, if it is one.
        headers: further ones.
    """

    path: str
    kind: str
    body: bytes
    words: Any = None
    parts: tuple[tuple[str, bytes], ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


def picture(seed: int, kind: str = "PNG", side: int = 32) -> bytes:
    """A small picture's file."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(values).save(target, kind)
    return target.getvalue()


def numbers(count: int) -> dict[str, torch.Tensor]:
    """Latents and prompts of so many samples."""
    generator = torch.Generator().manual_seed(count)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    return {
        "latents": draw(CHANNELS, SIDE, SIDE),
        "prompt_embeds": draw(TOKENS, WIDTH),
        "pooled_prompt_embeds": draw(POOLED),
    }


def protocol_seeds() -> list[Seed]:
    """Requests of protocol 1."""
    headers = {PROTOCOL_HEADER: "1"}
    one, three = numbers(1), numbers(3)
    blobs = (
        pack(one | {"u": torch.tensor([0.4]), "seeds": torch.tensor([1])}),
        pack(one | {"u": torch.tensor([1.0])}),
        pack({name: tensor.half() for name, tensor in one.items()} | {"u": torch.tensor([0.1])}),
        pack(three | {"u": torch.tensor([0.0, 0.5, 1.0]), "seeds": torch.tensor([0, 1, 2**62])}, {"by": "fuzz"}),
    )
    return [Seed("/v1/score", BLOB_TYPE, blob, headers=headers) for blob in blobs]


def blob_seeds() -> list[Seed]:
    """Requests of our own routes, in blobs."""
    one, two = numbers(1), numbers(2)
    prompt = {name: one[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
    file = torch.frombuffer(bytearray(picture(1)), dtype=torch.uint8)
    state = {"noised_latents": two["latents"], "sigma": torch.tensor([0.2, 0.8])}
    options = json.dumps({"sigmas": [0.2, 0.7], "draws": 2, "seed": [3, 4], "fusion": "tokens"})
    return [
        Seed("/v1/score_latents", BLOB_TYPE, pack(two, {"request": options})),
        Seed("/v1/score_latents", BLOB_TYPE, pack(state | prompt)),
        Seed("/v1/score_latents", BLOB_TYPE, pack(one | {"noise": torch.randn(1, CHANNELS, SIDE, SIDE)})),
        Seed("/v1/score_latents", BLOB_TYPE, pack({"pixels": torch.rand(1, 3, 32, 32)} | prompt)),
        Seed("/v1/score_latents", BLOB_TYPE, pack({"image.0": file}, {"request": '{"prompts": ["a"]}'})),
        Seed("/v1/compare", BLOB_TYPE, pack({"latents": two["latents"]} | prompt, {"request": '{"draws": 2}'})),
        Seed("/v1/rank", BLOB_TYPE, pack({"latents": two["latents"]} | prompt, {"request": '{"seed": null}'})),
    ]


def word_seeds() -> list[Seed]:
    """Requests in JSON and in forms."""
    files = [picture(1), picture(2, "JPEG"), picture(3, "WEBP")]
    images = [base64.b64encode(file).decode() for file in files]
    adaptive = {"max_draws": 3, "error_rate": 0.1, "standard_error": 0.5}
    options = {"sigmas": [0.4], "draws": 1, "fusion": "mean", "antithetic": False, "seed": 0, "deadline_ms": 60_000}
    turns = [{"history": [{"text": "a", "image_b64": images[0]}], "required_rewards": ["tiny"], "metadata": {}}]
    asked: list[tuple[str, Any]] = [
        ("/v1/score_images", {"model": "tiny", "prompts": ["a", "b"], "images": images[:2], **options}),
        ("/v1/score_images", {"prompts": ["a"], "images": images[2:], "adaptive": adaptive}),
        ("/v1/compare", {"prompt": "a", "images": images[:2], "tie_band": 0.1, **options}),
        ("/v1/rank", {"prompt": "a", "images": images, "tie_band": 0.05, **options}),
        ("/v1/attention", {"prompt": "a", "images": images[:1], "sigma": 0.4, "seed": 1}),
        ("/compute", {"prompt": ["a"], "image": images[:1], "video": None, "kwargs": None}),
        ("/score", {"requests": turns}),
        ("/v1/models", {"name": "x", "path": "/nowhere"}),
    ]
    seeds = [Seed(path, JSON_TYPE, json.dumps(words).encode(), words) for path, words in asked]
    for path, words in asked[:5]:
        alone = {key: value for key, value in words.items() if key != "images"}
        count = len(words["images"])
        parts = (("request", json.dumps(alone).encode()), *(("images", file) for file in files[:count]))
        seeds.append(Seed(path, "multipart/form-data; boundary=x", form_of(parts), alone, parts))
    return seeds


def form_of(parts: tuple[tuple[str, bytes], ...]) -> bytes:
    """A whole form with boundary x."""
    heads = (f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode() + body for name, body in parts)
    return b"\r\n".join(heads) + b"\r\n--x--\r\n"


SEEDS: dict[str, Callable[[], list[Seed]]] = {"protocol": protocol_seeds, "blobs": blob_seeds, "words": word_seeds}
