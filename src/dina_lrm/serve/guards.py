"""What a request must pass before anything of it is understood: the host's name, where it comes from, a key, and a body of
bounded size and pace.

Plain ASGI, so that nothing is read or buffered on the way, and in force for every route whoever wrote it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dina_lrm.serve.gate import Gate, Holder
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.settings import ServeSettings, host_name

__all__ = ["BodyGuard", "HostGuard", "KeyGuard", "OriginGuard", "client_of", "holder_of", "state_of"]

CLIENT_HEADER = b"x-client-id"
HARMLESS = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
UNANSWERED = 499  # what logs call a client that hung up


def state_of(scope: Scope) -> MutableMapping[str, Any]:
    """What the parts of the server tell each other of a request."""
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


# Bodies of a few words, which are parsed where all others wait.
SMALL_BODIES = ("/v1/arena/votes", "/v1/models")
SMALL_BODY_BYTES = 16 * 1024


def client_of(scope: Scope) -> str:
    """Who takes turns with others: set by `KeyGuard`."""
    client: str = state_of(scope).get("client", "unknown")
    return client


def holder_of(scope: Scope) -> Holder:
    """On whose account bytes are held: set by `BodyGuard`."""
    holder: Holder = state_of(scope)["holder"]
    return holder


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in place of the app."""
    state_of(scope)["kind"] = refusal.kind
    await refusal.response()(scope, receive, send)


class HostGuard:
    """Answers only to its own names: a page of another site, whose name leads here, finds nobody."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = {name.strip("[]").lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._allowed:
            host = host_name(_header(scope, b"host") or "")
            if host not in self._allowed:
                told = f"this server answers to {', '.join(sorted(self._allowed))}, not to {host!r:.80}; if that is one of its names, "
                told += "start it with --allow-host NAME"
                return await refuse(Refusal(421, "wrong_host", told), scope, receive, send)
        await self._app(scope, receive, send)


class OriginGuard:
    """Lets no page of another site have a visitor's browser post here. Only browsers say where a request comes from.

    A page whose site's name leads here is its own to a browser: that one `HostGuard` keeps out, or a key.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = {origin.lower() for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in HARMLESS and not self._is_own(scope):
            origin = _header(scope, b"origin")
            page = "a page of another site" if origin is None else f"a page of {origin!r:.80}"
            told = f"{page} may not post here; if this server's own page is seen there, start it with --allow-origin ORIGIN"
            return await refuse(Refusal(403, "cross_site", told), scope, receive, send)
        await self._app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        origin, site = _header(scope, b"origin"), _header(scope, b"sec-fetch-site")
        if origin is not None and origin.lower() in self._allowed:
            return True
        if site is not None:  # the browser's own word; what names the page saw on the way here it knows best
            return site in ("same-origin", "none")
        return origin is None or origin.lower().partition("://")[2] == (_header(scope, b"host") or "").lower()


class KeyGuard:
    """Lets in who shows a key, and says who it was: a key, the client's own name where names are taken, or its address."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[SecretStr], is_open: Callable[[str], bool], takes_names: bool = False
    ) -> None:
        self._app, self._takes_names = app, takes_names and not keys
        # Of one length whatever the key's, so that comparing tells nothing of it.
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = _shown_key(scope)
            known = self._knows(key)
            if self._digests and not known and not self._is_open(scope["path"]):
                told = "an API key is needed" if key is None else "the API key is not known here"
                told += "; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
                refusal = Refusal(401, "unauthorized", told, {"www-authenticate": "Bearer"})
                return await refuse(refusal, scope, receive, send)
            state_of(scope)["client"] = f"key {_digest(key or b'').hex()[:8]}" if known else self._name(scope)
        await self._app(scope, receive, send)

    def _knows(self, key: bytes | None) -> bool:
        shown = _digest(key or b"")
        # A list, not a generator: every key is compared, whichever fits.
        return any([hmac.compare_digest(shown, digest) for digest in self._digests])  # noqa: C419

    def _name(self, scope: Scope) -> str:
        own = _header(scope, CLIENT_HEADER) if self._takes_names else None
        if own is not None and own.isascii() and own.isprintable() and 0 < len(own) <= 64:
            return f"client {own}"
        peer = scope.get("client")
        return f"peer {peer[0]}" if peer else "peer unknown"


class BodyGuard:
    """Counts bodies while they arrive: too large is 413, too slow 408, too many at once 503, too many of one client 429."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, gate: Gate) -> None:
        self._app, self._settings, self._gate = app, settings, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = _header(scope, b"content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit()):
            return await refuse(Refusal(400, "bad_request", "content-length is no number"), scope, receive, send)
        # By digits first: a number of thousands of them is refused without being made.
        limit = SMALL_BODY_BYTES if scope["path"] in SMALL_BODIES else self._settings.max_body_bytes
        if declared is not None and (len(declared) > 18 or int(declared) > limit):
            return await refuse(_too_large(declared, limit), scope, receive, send)
        state_of(scope)["holder"] = holder = Holder(self._gate, client_of(scope))
        arriving = _Arriving(receive, self._settings, self._gate, limit, holder)
        try:
            await self._app(scope, arriving.receive, send)
        finally:
            holder.take(-arriving.received)


class _Arriving:
    """One body."""

    def __init__(self, receive: Receive, settings: ServeSettings, gate: Gate, limit: int, holder: Holder) -> None:
        self.received = 0
        self._limit, self._holder = limit, holder
        self._receive, self._settings, self._gate = receive, settings, gate
        self._started: float | None = None
        self._whole = False

    async def receive(self) -> Message:
        """The next part of the body; after the last one, whatever the server has to tell."""
        if self._whole:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._started = now if self._started is None else self._started
        allowed = self._settings.body_timeout + self.received / self._settings.body_bytes_per_second
        try:
            async with asyncio.timeout_at(self._started + allowed):
                message = await self._receive()
        except TimeoutError as error:
            told = f"the body came too slowly: {self.received} bytes in {allowed:.0f} seconds"
            raise Refusal(408, "slow_body", told, {"connection": "close"}) from error
        self._count(len(message.get("body", b"")))
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    def _count(self, size: int) -> None:
        self.received += size
        self._holder.take(size)
        if self.received > self._limit:
            raise _too_large(f"more than {self.received - size}", self._limit)
        if self._gate.held_bytes > self._settings.max_held_bytes:
            told = f"the server holds {self._gate.held_bytes - size} bytes of other requests and has no room for more"
            raise Refusal(503, "busy", f"{told}; ask again later", {"retry-after": "1"})
        share = self._settings.max_client_bytes
        if self._holder.exceeds(share):
            told = f"this client's requests hold {self._holder.client_size - size} bytes of the {share} that one client may"
            raise Refusal(429, "busy", f"{told}; ask again when some are answered", {"retry-after": "1"})


def _too_large(size: str, limit: int) -> Refusal:
    told = f"the body has {size:.30} bytes, at most {limit} are taken; send fewer candidates at once"
    return Refusal(413, "too_large", told)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _shown_key(scope: Scope) -> bytes | None:
    headers = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    shown: bytes | None = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")
    return shown or None


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None
