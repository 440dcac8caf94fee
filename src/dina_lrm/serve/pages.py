"""The page at `/` and its assets: plain files of the package, no build step, nothing from elsewhere.

They need no key: what they ask the server for does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import HTTPException

__all__ = ["is_page_path", "pages_router"]

INDEX = "index.html"
ASSETS = "/static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles from this server alone; pictures also from what the visitor chose (blob:). No frames, no forms, no base.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, in memory.

    Attributes:
        body: its bytes.
        media_type: what it is.
        tag: its entity tag, of its bytes.
    """

    body: bytes
    media_type: str
    tag: str

    @staticmethod
    def of(name: str, body: bytes) -> Asset:
        """Under the media type that its suffix names."""
        return Asset(body, MEDIA_TYPES[PurePosixPath(name).suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def read_assets() -> dict[str, Asset]:
    """Every file of the page by its name."""
    folder = files("dina_lrm.serve") / "static"
    return {one.name: Asset.of(one.name, one.read_bytes()) for one in folder.iterdir() if not one.name.startswith(".")}


def _serve(asset: Asset, request: Request) -> Response:
    """The asset, or 304 to whoever has it: asked anew each time, so that a new server is never met by an old page."""
    headers = {**SECURITY_HEADERS, "ETag": asset.tag, "Cache-Control": "no-cache"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)


def is_page_path(path: str) -> bool:
    """Whether a path is the page's, which needs no key."""
    return path in ("/", "/favicon.ico") or path.startswith(f"{ASSETS}/")


def pages_router() -> APIRouter:
    """Routes of `/` and its assets; none of them needs a key."""
    assets = read_assets()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _serve(assets[INDEX], request)

    @router.api_route("/favicon.ico", methods=["GET", "HEAD"])
    async def favicon(request: Request) -> Response:
        return _serve(assets["icon.svg"], request)

    @router.api_route(f"{ASSETS}/{{name}}", methods=["GET", "HEAD"])
    async def asset(name: str, request: Request) -> Response:
        if name not in assets or name == INDEX:
            raise HTTPException(404, f"there is no {ASSETS}/{name}")
        return _serve(assets[name], request)

    return router
