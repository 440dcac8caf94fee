"""UniRL: `POST /score`, a list of requests in, a list of results and one of errors out.

Two clients of one face: `UnirlClient` asks any server of the form, `UnirlRewards` any `RewardFunction` in its place. A reward
is told as `{name: {name: value}}`, one number under its own name, because the trainer may average whatever stands there.
What failed is not among the results but among the errors.
"""

from __future__ import annotations

import base64
import binascii
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import httpx2
from PIL import Image, ImageOps

from dina_lrm.adapters.asking import DEFAULT, Asking
from dina_lrm.errors import ConfigError, DataError, DinaError, ImageError, WorkError
from dina_lrm.images import to_rgb
from dina_lrm.scoring.protocol import RewardFunction
from dina_lrm.scoring.retries import Effort, Patience, reason, refusal, retry_after, worth_another_try

Results: TypeAlias = list[dict[str, dict[str, float]]]
Errors: TypeAlias = list[dict[str, str]]
Turn: TypeAlias = tuple[str, Image.Image]
FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class RewardRequest:
    """One sample.

    Attributes:
        history: turns of text and picture; the last is what is scored.
        required_rewards: names of rewards.
        metadata: passed on as it is.
    """

    history: Sequence[Turn]
    required_rewards: Sequence[str]
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What became of each request.

    Attributes:
        results: rewards by name, each with its numbers by name.
        errors: why a reward is missing, by name.
    """

    results: Results
    errors: Errors

    def whole(self) -> Results:
        """The results, where nothing is missing.

        Raises:
            WorkError: naming the first that failed.
        """
        for place, failed in enumerate(self.errors):
            for name, why in failed.items():
                raise WorkError(f"request {place} has no reward {name!r}: {why}")
        return self.results

    def payload(self) -> dict[str, Any]:
        """As the body of a response."""
        return {"results": self.results, "errors": self.errors}


def write_requests(
    requests: Sequence[RewardRequest], image_format: str = "PNG", image_quality: int = 95
) -> dict[str, Any]:
    """The body of `POST /score`.

    Args:
        requests: one a sample.
        image_format: PNG loses nothing; JPEG is what the trainer's own client sends.
        image_quality: of JPEG and WEBP.

    Raises:
        ConfigError: another format.
    """
    if image_format not in FORMATS:
        raise ConfigError(f"image_format must be one of {', '.join(FORMATS)}, got {image_format!r}")

    def encoded(picture: Image.Image) -> str:
        file = io.BytesIO()
        to_rgb(picture).save(file, format=image_format, quality=image_quality)
        return base64.b64encode(file.getvalue()).decode("ascii")

    return {
        "requests": [
            {
                "history": [{"text": text, "image_b64": encoded(picture)} for text, picture in request.history],
                "required_rewards": list(request.required_rewards),
                "metadata": None if request.metadata is None else dict(request.metadata),
            }
            for request in requests
        ]
    }


def read_requests(payload: Any) -> list[RewardRequest]:
    """The other way, on a server.

    Args:
        payload: parsed JSON of unknown origin.

    Raises:
        DataError: not of the form.
        ImageError: a picture that cannot be read.
    """
    requests = payload.get("requests") if isinstance(payload, dict) else None
    if not isinstance(requests, list):
        raise DataError(f'a body must be {{"requests": [...]}}, got {payload!r:.80}')
    return [_request(place, one) for place, one in enumerate(requests)]


def read_answer(payload: Any, count: int) -> Answer:
    """A response's body.

    Args:
        payload: parsed JSON.
        count: of requests that were sent.

    Raises:
        WorkError: not of the form, or not one result a request.
    """
    results, errors = (payload.get(name) if isinstance(payload, dict) else None for name in ("results", "errors"))
    errors = [{}] * count if errors is None else errors
    for told in (results, errors):
        if not isinstance(told, list) or len(told) != count or not all(isinstance(one, dict) for one in told):
            raise WorkError(
                f"the server must answer {count} requests with as many results and errors, got {payload!r:.120}"
            )
    return Answer(results or [], errors)


class UnirlRewards:
    """The trainer's `RewardClient` without a server: a `RewardFunction` that answers to a name.

    Args:
        model: local or behind HTTP.
        name: of its reward.
        asking: which noise is looked at, and which number is given.
    """

    def __init__(self, model: RewardFunction, name: str = "dina", asking: Asking = DEFAULT) -> None:
        self.model, self.name, self.asking = model, name, asking

    def score(self, requests: Sequence[RewardRequest]) -> Results:
        """Rewards of all requests.

        Raises:
            WorkError: one of them has none.
        """
        return self.answer(requests).whole()

    def answer(self, requests: Sequence[RewardRequest]) -> Answer:
        """Rewards and errors of all requests.

        Raises:
            DinaError: none could be scored.
        """
        results: Results = [{} for _ in requests]
        errors: Errors = [{} for _ in requests]
        asked = []
        for place, request in enumerate(requests):
            for name in request.required_rewards:
                if name != self.name:
                    errors[place][name] = f"ConfigError: no such reward here; there is {self.name!r}"
            if self.name in request.required_rewards and not request.history:
                errors[place][self.name] = "DataError: the history is empty, and its last turn is what is scored"
            elif self.name in request.required_rewards:
                asked.append(place)
        turns = [requests[place].history[-1] for place in asked]
        found = self.asking.of_each(self.model, [text for text, _ in turns], [picture for _, picture in turns])
        for place, one in zip(asked, found, strict=True):
            if isinstance(one, DinaError):
                errors[place][self.name] = f"{type(one).__name__}: {one}"
            else:
                results[place][self.name] = {self.name: one}
        return Answer(results, errors)


class UnirlClient:
    """Asks a server of the form; it tries again only what may pass, within one deadline.

    Args:
        base_url: of the server, without a path.
        timeout: seconds for one call, all tries together.
        image_format: PNG loses nothing; JPEG is smaller.
        image_quality: of JPEG and WEBP.
        retries: tries after the first.
        api_key: if the server wants one.
        transport: of the HTTP library, in place of its own.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float = 60.0,
        image_format: str = "PNG",
        image_quality: int = 95,
        *,
        retries: int = 3,
        api_key: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.patience = Patience(timeout, retries)
        self.image_format, self.image_quality = image_format, image_quality
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx2.Client(base_url=base_url.rstrip("/"), headers=headers, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(self, requests: Sequence[RewardRequest]) -> Results:
        """Rewards of all requests.

        Raises:
            WorkError: one of them has none, or there is no answer.
            InputError: the server refuses them.
        """
        return self.answer(requests).whole()

    def answer(self, requests: Sequence[RewardRequest]) -> Answer:
        """Rewards and errors of all requests.

        Raises:
            WorkError: there is no answer.
            InputError: the server refuses them.
        """
        body = write_requests(requests, self.image_format, self.image_quality)
        effort = Effort(self.patience, str(self._http.base_url), time.monotonic())
        while True:
            asked_to_wait = None
            try:
                response = self._http.post("/score", json=body, timeout=effort.left(time.monotonic()))
            except httpx2.RequestError as error:
                told = f"{type(error).__name__} {error}".strip()
            else:
                if response.is_success:
                    return _answer_of(response, len(requests))
                if not worth_another_try(response.status_code):
                    raise refusal(response.status_code, response.content)
                told, asked_to_wait = reason(response.status_code, response.content), retry_after(response.headers)
            time.sleep(effort.wait(time.monotonic(), told, asked_to_wait))


def _answer_of(response: httpx2.Response, count: int) -> Answer:
    try:
        payload = response.json()
    except ValueError as error:
        raise WorkError(f"the server's answer is not JSON: {response.content[:80]!r}") from error
    return read_answer(payload, count)


def _request(place: int, one: Any) -> RewardRequest:
    history = one.get("history") if isinstance(one, dict) else None
    names = one.get("required_rewards") if isinstance(one, dict) else None
    if not isinstance(history, list) or not history or not _are_names(names):
        raise DataError(
            f"request {place} must have a history of one turn or more and required_rewards, a list of names, got {one!r:.80}"
        )
    return RewardRequest([_turn(place, turn) for turn in history], names, one.get("metadata"))


def _are_names(names: object) -> TypeGuard[list[str]]:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _turn(place: int, turn: Any) -> Turn:
    text, encoded = (turn.get(name) if isinstance(turn, dict) else None for name in ("text", "image_b64"))
    if not isinstance(text, str) or not isinstance(encoded, str):
        raise DataError(f"a turn of request {place} must have text and image_b64; videos are not scored here")
    try:
        file = io.BytesIO(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the picture of request {place} is not base64: {error}") from error
    try:
        with Image.open(file) as picture:
            picture.load()
            return text, to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"the picture of request {place} cannot be read: {error}") from error
