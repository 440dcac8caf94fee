"""A whole server in memory: the app on a model, and ways to ask it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image

from dina_lrm.scoring import RewardModel
from dina_lrm.serve.app import create_app
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.settings import ServeSettings

NAME = "tiny"


class Served(httpx2.AsyncClient):
    """A client of an app in memory.

    Attributes:
        app: the app.
        pool: its models.
        gate: its gate.
    """

    app: Any
    pool: ModelPool
    gate: Gate


@asynccontextmanager
async def serving(
    model: RewardModel | None, settings: ServeSettings | None = None, headers: dict[str, str] | None = None, **pool: Any
) -> AsyncIterator[Served]:
    """Serve a model under `NAME`; None serves none yet."""
    models = ModelPool(Observer(), **{"max_wait_ms": 5.0, **pool})
    gate = Gate()
    app = create_app(models, settings, gate=gate)
    async with app.router.lifespan_context(app):
        if model is not None:
            models.add(NAME, model)
        transport = httpx2.ASGITransport(app=app)
        async with Served(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            client.app, client.pool, client.gate = app, models, gate
            yield client


def random_picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    picture.save(target, kind)
    return target.getvalue()


def base64_of(picture: Image.Image) -> str:
    return base64.b64encode(file_of(picture)).decode()


def error_of(response: httpx2.Response) -> tuple[int, str]:
    """Status and kind of a refusal, which is whole and one sentence or two."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) - {"type"} == {"kind", "message"}, body
    message = body["error"]["message"]
    assert message and "\n" not in message and len(message) <= 1000
    assert response.headers["content-type"] == "application/json"
    return response.status_code, body["error"]["kind"]


async def call(
    app: Any,
    path: str,
    body: Iterable[bytes] = (),
    headers: dict[str, str] | None = None,
    hang: bool = False,
    method="POST",
) -> tuple[int, dict[str, str], bytes]:
    """Ask without a client between: the body comes in the given parts, and then, with `hang`, nothing more ever."""
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    parts += [] if hang else [{"type": "http.request", "body": b"", "more_body": False}]
    parts.reverse()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope_of(path, headers, method), receive, send)
    head = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:])


def scope_of(path: str, headers: dict[str, str] | None = None, method: str = "POST") -> dict[str, Any]:
    """What an ASGI server says of a request."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def tensors(
    cases: dict[str, torch.Tensor], count: int = 1, case: int = 0, **extra: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What a client of protocol 1 sends of the golden case."""
    return {
        "latents": cases[f"{case}.latents"][:count].contiguous(),
        "prompt_embeds": cases["text.128.prompt_embeds"][:count].contiguous(),
        "pooled_prompt_embeds": cases["text.128.pooled"][:count].contiguous(),
        "u": torch.full((count,), 0.4),
        **extra,
    }
