"""verl-omni's client of wire protocol version 1: one sample's latents and text states to `POST /v1/score`, awaited.

    reward.reward_functions.dina:
        {path: pkg://dina_lrm.adapters.verl_omni_http, name: compute_score, server_url: http://127.0.0.1:8000/v1/score}

Any server of the protocol will do. Unlike the client that comes with the trainer, this one tries again only what may pass: no
answer, a try that took too long, and status 408, 429 and 5xx. A request that the server refuses is said at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import httpx2
import torch
from torch import Tensor

from dina_lrm.adapters.asking import VALUES
from dina_lrm.adapters.verl_omni import of_one, refuse_unknown, rollout_latents
from dina_lrm.errors import ConfigError, ShapeError, ValueRangeError, WorkError
from dina_lrm.scoring.retries import LONGEST_BACKOFF, Effort, Patience, reason, refusal, retry_after, worth_another_try
from dina_lrm.scoring.wire import BLOB_TYPE, PROTOCOL_HEADER, PROTOCOL_VERSION, pack

HEADERS = {"content-type": BLOB_TYPE, PROTOCOL_HEADER: PROTOCOL_VERSION}
MOST_CONNECTIONS = 512  # a step asks for all its samples at once
_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()


async def compute_score(
    solution_image: Any,
    ground_truth: Any,
    extra_info: Mapping[str, Any],
    server_url: str,
    noise_level: float = 0.4,
    noise_seed: int | None = 0,
    score_scale: float = 1.0,
    score_bias: float = 0.0,
    timeout: float = 120.0,
    max_retries: int = 2,
    retry_backoff: float = 0.5,
    api_key: str | None = None,
    value: Literal["reward", "utility"] = "utility",
    **kwargs: Any,
) -> dict[str, float]:
    """Score one sample's clean latents on a server.

    Args:
        solution_image: latents `[16 h w]` with `output_type=latent`; not read with `output_type=both`.
        ground_truth: not read: the text states say what the prompt was.
        extra_info: `prompt_embeds` and `pooled_prompt_embeds` of the rollout, and with `output_type=both`
            `latents_clean`, or `image_latent` of `media_artifacts`.
        server_url: of the route itself, with its path.
        noise_level: sigma.
        noise_seed: of the noise; None lets the server draw one.
        score_scale: the score is the value times this.
        score_bias: plus this.
        timeout: seconds for one try.
        max_retries: tries after the first.
        retry_backoff: seconds before the second try, doubled before each further one.
        api_key: if the server wants one.
        value: "utility", the raw score that the protocol is about, or "reward", the calibrated one, of servers that give it too.
        kwargs: what else the trainer passes; not read. Settings that are not known are refused.

    Returns:
        `score`, and `drm_raw_score` as the server gave it.

    Raises:
        InputError: what is asked is wrong, by this client's reading or the server's.
        WorkError: no answer, or none that is a finite score.
    """
    del ground_truth
    refuse_unknown(kwargs)
    if value not in VALUES:
        raise ConfigError(f"value must be one of {', '.join(VALUES)}, got {value!r}")
    if not timeout > 0:
        raise ValueRangeError(f"timeout must be above 0 seconds, got {timeout}")
    if max_retries < 0:
        raise ValueRangeError(f"max_retries must be 0 or more, got {max_retries}")
    patience = Patience((max_retries + 1) * (timeout + LONGEST_BACKOFF), max_retries, retry_backoff)
    body = await asyncio.to_thread(pack, _tensors(solution_image, extra_info, noise_level, noise_seed))
    headers = HEADERS if api_key is None else {**HEADERS, "authorization": f"Bearer {api_key}"}
    answer = await _ask(server_url, body, headers, timeout, patience)
    raw = _only(answer, "raw_scores")
    chosen = raw if value == "utility" else _only(answer, "rewards")
    return {"score": chosen * score_scale + score_bias, "drm_raw_score": raw}


async def close() -> None:
    """Close the running loop's connections; they are opened again when needed."""
    session = _sessions.pop(asyncio.get_running_loop(), None)
    if session is not None:
        await session.aclose()


def _tensors(
    solution_image: Any, extra_info: Mapping[str, Any], noise_level: float, noise_seed: int | None
) -> dict[str, Tensor]:
    if not 0 <= noise_level <= 1:
        raise ValueRangeError(f"noise_level must lie in [0, 1], got {noise_level}")
    latents = rollout_latents(solution_image, extra_info)
    if latents is None:
        raise ShapeError(
            "there are no latents to score: let the rollout keep them (output_type=both, or latent for SD3's 16 channels)"
        )
    tensors = {
        "latents": latents,
        "prompt_embeds": of_one(extra_info.get("prompt_embeds"), "prompt_embeds", 3),
        "pooled_prompt_embeds": of_one(extra_info.get("pooled_prompt_embeds"), "pooled_prompt_embeds", 2),
        "u": torch.tensor([noise_level], dtype=torch.float32),
    }
    if noise_seed is not None:
        if not 0 <= noise_seed < 2**63:
            raise ValueRangeError(f"noise_seed must be 0 or more and below 2^63, or None, got {noise_seed}")
        tensors["seeds"] = torch.tensor([noise_seed], dtype=torch.int64)
    return tensors


async def _ask(
    url: str, body: bytes, headers: Mapping[str, str], timeout: float, patience: Patience
) -> Mapping[str, Any]:
    effort = Effort(patience, url, time.monotonic())
    while True:
        asked_to_wait = None
        try:
            async with asyncio.timeout(timeout):
                response = await _session().post(url, content=body, headers=dict(headers), timeout=timeout)
        except (httpx2.RequestError, TimeoutError) as error:
            told = f"{type(error).__name__} {error}".strip()
        else:
            if response.status_code == httpx2.codes.OK:
                return _answer(response)
            if not worth_another_try(response.status_code):
                raise refusal(response.status_code, response.content)
            told, asked_to_wait = reason(response.status_code, response.content), retry_after(response.headers)
        await asyncio.sleep(effort.wait(time.monotonic(), told, asked_to_wait))


def _session() -> httpx2.AsyncClient:
    """Connections belong to an event loop: one client each, kept alive."""
    loop = asyncio.get_running_loop()
    session = _sessions.get(loop)
    if session is None or session.is_closed:
        limits = httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS)
        session = _sessions[loop] = httpx2.AsyncClient(limits=limits)
    return session


def _answer(response: httpx2.Response) -> Mapping[str, Any]:
    """An answer of protocol version 1.

    Raises:
        WorkError: another version.
    """
    try:
        answer = response.json()
    except ValueError as error:
        raise WorkError(f"the server's answer is not JSON: {response.content[:80]!r}") from error
    if not isinstance(answer, dict) or answer.get("protocol_version") != PROTOCOL_VERSION:
        told = answer.get("protocol_version") if isinstance(answer, dict) else answer
        raise WorkError(f"the server must answer with protocol_version {PROTOCOL_VERSION!r}, got {told!r:.80}")
    return answer


def _only(answer: Mapping[str, Any], name: str) -> float:
    """The one score under a name.

    Raises:
        WorkError: not one score, or a score that is not finite.
    """
    scores = answer.get(name)
    if not isinstance(scores, list) or len(scores) != 1:
        raise WorkError(f"the server must answer with one number under {name}, got {scores!r:.80}")
    score = scores[0]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise WorkError(f"the server must answer with a finite score, got {score!r:.80}")
    return float(score)
