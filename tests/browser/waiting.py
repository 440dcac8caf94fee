"""Waiting for what a page will come to."""

from __future__ import annotations

import time
from typing import Any

PATIENCE = 30  # seconds


def until(page: Any, expression: str) -> None:
    """Until JavaScript is true of the page. Asked from outside: the page's own policy forbids evaluating text inside it."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} did not come true"
        page.wait_for_timeout(30)


def until_text(page: Any, element: str, text: str) -> None:
    """Until an element, by its id, says something."""
    until(page, f"document.getElementById({element!r}).innerText.includes({text!r})")
