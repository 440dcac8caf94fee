"""Which failures of a request are worth another try, when, and what the caller is told in the end.

Another try is worth it where the server may answer the same request later: nothing came back, 408, 429, and 5xx. Every
other 4xx says that the request is wrong, and is the caller's `InputError` at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pydantic import ValidationError

from dina_lrm import errors
from dina_lrm.errors import InputError, NoAnswerError, ValueRangeError
from dina_lrm.scoring.wire import ErrorReply

LATER = (408, 429)
LONGEST_BACKOFF = 8.0
TYPES: dict[str, type[InputError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, InputError)
}


@dataclass(frozen=True)
class Patience:
    """How long a client tries.

    Attributes:
        timeout: seconds for one question, all tries and waits together.
        retries: tries after the first.
        backoff: seconds before the second try, doubled before each further one; a server's `Retry-After` is kept to if it
            is longer.
    """

    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueRangeError(f"timeout must be above 0 seconds, got {self.timeout:g}")
        if self.retries < 0:
            raise ValueRangeError(f"retries must be 0 or more, got {self.retries}")
        if not self.backoff >= 0:
            raise ValueRangeError(f"backoff must be 0 seconds or more, got {self.backoff:g}")


class Effort:
    """The tries for one question."""

    def __init__(self, patience: Patience, where: str, now: float) -> None:
        self.patience = patience
        self.where = where
        self.deadline = now + patience.timeout
        self.tries = 0

    def left(self, now: float) -> float:
        """Seconds for the next try; never 0, which some libraries take for no limit."""
        return max(self.deadline - now, 0.001)

    def wait(self, now: float, reason: str, retry_after: float | None = None) -> float:
        """Seconds to wait after a failed try.

        Args:
            now: time of the failure, on the clock of the constructor.
            reason: what went wrong, for the last message.
            retry_after: what the server asked for, in seconds.

        Raises:
            NoAnswerError: enough was tried, or the wait would outlast the deadline.
        """
        self.tries += 1
        pause = min(self.patience.backoff * 2 ** (self.tries - 1), LONGEST_BACKOFF)
        pause *= 0.5 + random.random() / 2  # a thousand workers that failed at once come back one after another
        pause = max(pause, retry_after or 0.0)
        if self.tries > self.patience.retries:
            raise NoAnswerError(f"{self.where} gave no answer in {self._tries()}: {reason}")
        if now + pause >= self.deadline:
            asked = f", and asks to wait {retry_after:g} s" if retry_after else ""
            raise NoAnswerError(
                f"{self.where} gave no answer in {self.patience.timeout:g} s and {self._tries()}: {reason}{asked}"
            )
        return pause

    def _tries(self) -> str:
        return f"{self.tries} {'try' if self.tries == 1 else 'tries'}"


def worth_another_try(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in LATER or status >= 500


def refusal(status: int, body: bytes) -> InputError:
    """A 4xx, or a redirect, as the error that a model in this process would raise, in the server's own words."""
    told = reason(status, body)
    try:
        name = ErrorReply.model_validate_json(body).error.type
    except ValidationError:
        return InputError(told)
    return TYPES.get(name or "", InputError)(told)


def reason(status: int, body: bytes) -> str:
    """What a server's answer says went wrong, in one line."""
    try:
        return ErrorReply.model_validate_json(body).error.message
    except ValidationError:
        text = " ".join(body[:200].decode("utf-8", "replace").split())
        return f"the server answered with status {status}" + (f": {text}" if text else "")


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, 10.2.3).

    Args:
        headers: of its answer.
        now: for a date; None takes the clock's.

    Returns:
        The seconds, 0 or more; None where it asks for nothing that can be read.
    """
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        date = parsedate_to_datetime(told)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
