"""`/docs`: what OpenAPI says of every route, as one plain page made here, with nothing fetched from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Response

__all__ = ["documents_router"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.45 ui-monospace,monospace}
pre{overflow:auto;padding:.75rem;border:1px solid;border-radius:.4rem}
details{margin:.4rem 0}summary{cursor:pointer}
section{border-top:1px solid;padding:.5rem 0}h2{font-size:1.1rem;margin:.4rem 0}
"""


def documents_router(app: FastAPI) -> APIRouter:
    """The page that tells of an app's routes."""
    router = APIRouter(include_in_schema=False)
    made: list[str] = []

    @router.get("/docs")
    async def docs() -> Response:
        if not made:
            made.append(page(app.openapi()))
        return Response(made[0], media_type="text/html; charset=utf-8", headers=HEADERS)

    return router


def page(schema: dict[str, Any]) -> str:
    """The page.

    Args:
        schema: what OpenAPI says.

    Returns:
        HTML.
    """
    title, description = escape(schema["info"]["title"]), escape(schema["info"].get("description", ""))
    sections = "".join(_sections(schema))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f"<h1>{title}</h1><p>{description}</p>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>. Errors are '
        '<code>{"error": {"kind": "...", "message": "..."}}</code>.</p>'
        f"{sections}</main></body></html>"
    )


def _sections(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
            for parameter in operation.get("parameters", ()):
                yield f"<p>{escape(parameter['in'])} <code>{escape(parameter['name'])}</code></p>"
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                yield _fold(f"body, {kind}", body.get("schema", {}))
            for status, answer in operation.get("responses", {}).items():
                for kind, body in answer.get("content", {}).items():
                    yield _fold(f"{status}, {kind}", _resolved(body.get("schema", {}), schema))
            yield "</section>"


def _fold(title: str, schema: dict[str, Any]) -> str:
    told = escape(json.dumps(schema, indent=1))
    return f"<details><summary>{escape(title)}</summary><pre>{told}</pre></details>"


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = str(part.get("$ref", "")).rpartition("/")[2]
    found: dict[str, Any] = schema.get("components", {}).get("schemas", {}).get(name, part)
    return found
