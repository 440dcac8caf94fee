"""The page's files: whole, of this package alone, and sent with what keeps others out of it."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from pydantic import SecretStr

from dina_lrm.serve.pages import is_page_path, read_assets
from dina_lrm.serve.settings import ServeSettings
from tests.serve.fake import in_loop
from tests.serve.serving import error_of, serving

PATHS = ["/", *sorted(f"/static/{name}" for name in read_assets() if name != "index.html")]


@pytest.mark.parametrize("path", PATHS)
@in_loop
async def test_every_file_is_sent_to_anybody_with_its_headers(path: str) -> None:
    async with serving(None, ServeSettings(api_keys=(SecretStr("k" * 20),))) as client:
        response = await client.get(path)
        head = await client.head(path)
    assert response.status_code == head.status_code == 200 and not head.content
    assert response.headers["content-type"].startswith(("text/html", "text/javascript", "text/css", "image/svg+xml"))
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy


@in_loop
async def test_who_has_a_file_is_told_so() -> None:
    async with serving(None) as client:
        first = await client.get("/static/app.js")
        assert first.headers["cache-control"] == "no-cache"
        for known in (first.headers["etag"], f'"old", W/{first.headers["etag"]}', "*"):
            again = await client.get("/static/app.js", headers={"if-none-match": known})
            assert again.status_code == 304 and not again.content and again.headers["etag"] == first.headers["etag"]
        changed = await client.get("/static/app.js", headers={"if-none-match": '"old"'})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/index.html", "/static/nothing.js", "/static/..%2f..%2f__init__.py", "/static/a/../app.py"],
)
@in_loop
async def test_there_is_nothing_else(path: str) -> None:
    async with serving(None) as client:
        assert error_of(await client.get(path)) == (404, "not_found")


def test_pages_alone_need_no_key() -> None:
    assert all(map(is_page_path, [*PATHS, "/favicon.ico"]))
    assert not any(map(is_page_path, ["", "/v1/rank", "/v1/arena/pair", "/statics", "/static", "//"]))


def test_what_the_page_names_is_there_and_nothing_is_elsewhere() -> None:
    assets = read_assets()
    texts = {name: asset.body.decode() for name, asset in assets.items()}
    named = set(re.findall(r'(?:href|src)="static/([\w.-]+)"', texts["index.html"]))
    named |= {name for text in texts.values() for name in re.findall(r'from "\./([\w.-]+)"', text)}
    assert named == set(assets) - {"index.html"}
    for name, text in texts.items():
        outside = [url for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text) if "www.w3.org" not in url]
        assert not outside, f"{name} names {outside}"
        assert "innerHTML" not in text and "eval(" not in text, f"{name} makes markup of text"


def test_the_page_has_no_style_or_script_inside() -> None:
    text = (files("dina_lrm.serve") / "static" / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_every_element_that_scripts_ask_for_is_there() -> None:
    texts = {name: asset.body.decode() for name, asset in read_assets().items()}
    there = set(re.findall(r'\sid="([\w-]+)"', texts["index.html"]))
    asked = {name for text in texts.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    assert asked <= there, asked - there
