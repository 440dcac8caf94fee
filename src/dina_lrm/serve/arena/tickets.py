"""What a voter is shown, without a word about where it came from: pictures and pairs under sealed names.

A ticket holds the pair that it stands for, so a pair that was shown before the server was stopped can be voted on after it
came up again, and showing one writes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from dina_lrm.errors import InputError
from dina_lrm.serve.arena.store import Sampling

PICTURE_BYTES = 9
NONCE_BYTES = 8
VOTER_BYTES = 12
SEAL_BYTES = 13
_CODES: dict[Sampling, bytes] = {"random": b"r", "active": b"a"}


class TicketError(InputError):
    """This arena gave this voter no such ticket."""


@dataclass(frozen=True)
class Showing:
    """A pair as it is shown once.

    Attributes:
        left: id of the candidate on the left.
        right: id of the candidate on the right.
        sampling: how the pair was picked.
        nonce: tells this showing from others of the same pair.
    """

    left: str
    right: str
    sampling: Sampling
    nonce: bytes


class TicketOffice:
    """Names under seal, of the candidates of one arena."""

    def __init__(self, secret: str, candidates: Iterable[str]) -> None:
        self._secret = bytes.fromhex(secret)
        self._candidate_of = {self.picture(candidate): candidate for candidate in candidates}

    def picture(self, candidate: str) -> str:
        """The name under which a candidate's picture is fetched."""
        return _text(self._seal(b"picture" + candidate.encode())[:PICTURE_BYTES])

    def candidate(self, picture: str) -> str | None:
        """Whose picture it is; None if nobody's."""
        return self._candidate_of.get(picture)

    def voter(self, name: str) -> str:
        """A voter's name in what leaves the server: the same for all answers, and none to answer under."""
        return _text(self._seal(b"voter" + name.encode())[:VOTER_BYTES]) if name else ""

    def issue(self, showing: Showing, voter: str) -> str:
        """The ticket of a showing, good for this voter alone."""
        pictures = [_bytes(self.picture(candidate)) for candidate in (showing.left, showing.right)]
        told = b"".join((*pictures, _CODES[showing.sampling], showing.nonce))
        return _text(told + self._seal(b"pair" + told + voter.encode())[:SEAL_BYTES])

    def read(self, ticket: str, voter: str) -> Showing:
        """What a ticket stands for.

        Args:
            ticket: as it was issued.
            voter: who shows it.

        Returns:
            The showing.

        Raises:
            TicketError: not one of this arena's, another voter's, or of candidates that it has no more.
        """
        try:
            whole = _bytes(ticket)
        except ValueError as error:
            raise TicketError("pair is no ticket of this arena; ask for another pair") from error
        told, seal = whole[:-SEAL_BYTES], whole[-SEAL_BYTES:]
        expected = self._seal(b"pair" + told + voter.encode())[:SEAL_BYTES]
        if len(told) != 2 * PICTURE_BYTES + 1 + NONCE_BYTES or not hmac.compare_digest(seal, expected):
            raise TicketError("pair is no ticket that this arena gave to this voter; ask for another pair")
        left, right = (self.candidate(_text(told[i * PICTURE_BYTES : (i + 1) * PICTURE_BYTES])) for i in (0, 1))
        if left is None or right is None:
            raise TicketError("the pictures of this pair are no longer in the arena; ask for another pair")
        code = told[2 * PICTURE_BYTES : 2 * PICTURE_BYTES + 1]
        sampling = next(name for name, known in _CODES.items() if known == code)
        return Showing(left, right, sampling, told[-NONCE_BYTES:])

    def _seal(self, told: bytes) -> bytes:
        return hmac.new(self._secret, told, hashlib.sha256).digest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    """The bytes behind `_text`, and behind nothing else: another spelling of the same bytes would be another vote."""
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _text(raw) != text:
        raise ValueError(text)
    return raw
