"""A headless Chromium, and pages that may not complain."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dina_lrm.serve.settings import ServeSettings
from tests.browser.server import running
from tests.serve.arena_folders import picture

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Open = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium_path() -> str | None:
    """Of the browser of this machine; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; tests that need it are skipped where it, or what drives it, is missing.

    While it lives an event loop runs in this thread, so it must not outlive the tests that use it.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = chromium_path()
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """Open an address in a fresh profile; at the end no page may have logged an error or asked another host.

    Lines that name a status are Chromium's own, of requests that a test lets fail.
    """
    contexts, complaints = [], []

    def hear(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_page(address: str, width: int = 1280, height: int = 860, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        host = address.split("/")[2]
        page.on("request", lambda one: one.url.split("/")[2] == host or complaints.append(one.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [one for one in complaints if not one.startswith("blob:")] == []


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several colours and two sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(4):
        path = folder / f"colour-{number}.png"
        picture(3 * number, number, side=128 if number < 3 else 64).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def plain(golden_model: Any) -> Iterator[str]:
    """A server that asks for no key and has no arena."""
    with running(lambda: golden_model, ServeSettings()) as address:
        yield address
