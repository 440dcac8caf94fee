"""When the server says no: the page says so, and nothing that was typed is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from dina_lrm.serve.settings import ServeSettings
from tests.browser.server import running
from tests.browser.waiting import until_text

PROMPT = "a red fox"
KEY = "correct-horse-battery"


def fill(page: Any, files: list[Path]) -> None:
    page.fill("#prompt", PROMPT)
    page.set_input_files("#files", files[:2])


def kept(page: Any) -> bool:
    return page.input_value("#prompt") == PROMPT and page.locator("#chosen li").count() == 2


def told(page: Any) -> str:
    page.wait_for_selector("#notice:not([hidden])")
    return page.inner_text("#notice-text")


def answered(page: Any) -> None:
    page.wait_for_selector("#result:not([hidden])")
    assert page.is_hidden("#notice") and kept(page)


@pytest.fixture(scope="module")
def locked(golden_model: Any) -> Any:
    with running(lambda: golden_model, ServeSettings(api_keys=(SecretStr(KEY),))) as address:
        yield address


def test_a_key_is_asked_for_and_the_request_goes_on(locked, open_page, files) -> None:
    page = open_page(locked)
    fill(page, files)
    page.click("#go")
    assert "asks for a key" in told(page)
    assert page.evaluate("document.activeElement.id") == "key" and kept(page)
    page.keyboard.type("wrong-horse-battery")
    page.keyboard.press("Enter")
    until_text(page, "notice-text", "not one of its keys")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    answered(page)
    until_text(page, "status", "tiny")


def test_a_key_that_no_header_carries_is_refused_here(locked, open_page, files) -> None:
    page = open_page(locked)
    fill(page, files)
    page.click("#go")
    told(page)
    page.fill("#key", "schlüssel")
    page.keyboard.press("Enter")
    assert "plain letters" in page.inner_text("#notice-text")


def test_the_key_of_a_tab_is_remembered_there_and_nowhere_else(locked, open_page, files) -> None:
    page = open_page(locked)
    page.evaluate(f"sessionStorage.setItem('dina-lrm.key', '{KEY}')")
    page.reload()
    fill(page, files)
    page.click("#go")
    answered(page)
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")


def test_pictures_that_are_too_large_are_said_to_be(golden_model, open_page, tmp_path) -> None:
    noise = tmp_path / "noise.png"
    Image.effect_noise((400, 400), 90).save(noise)
    with running(lambda: golden_model, ServeSettings(max_body_bytes=40_000)) as address:
        page = open_page(address)
        until_text(page, "status", "tiny")
        fill(page, [noise, noise])
        page.click("#go")
        assert "more than the server takes" in told(page)
        assert page.is_hidden("#notice-again") and kept(page)


def test_what_the_server_refuses_is_said_in_its_words(golden_model, open_page, files) -> None:
    with running(lambda: golden_model, ServeSettings(max_states=6)) as address:
        page = open_page(address)
        until_text(page, "status", "tiny")
        fill(page, files)
        page.click("#go")
        assert "8 states, at most 6" in told(page)
        assert page.is_hidden("#notice-again") and kept(page)
        page.locator("#options summary").click()
        page.fill("#draws", "2")
        page.click("#go")
        answered(page)
        # The ranking fits, the curve does not: one is shown, the other says why.
        until_text(page, "curve-told", "at most 6")


def test_a_page_waits_for_its_model(golden_model, open_page, files) -> None:
    loaded = threading.Event()

    def load() -> Any:
        assert loaded.wait(60)
        return golden_model

    with running(load) as address:
        try:
            page = open_page(address)
            until_text(page, "status", "being loaded")
            fill(page, files)
            page.click("#go")
            assert "being loaded" in told(page) and "Trying again in" in page.inner_text("#notice-again")
        finally:
            loaded.set()
        answered(page)


@pytest.mark.parametrize(
    ("state", "kind", "said", "again"),
    [
        ("loading", "loading", "model is being loaded", "Trying again in"),
        ("draining", "draining", "server is being stopped", "Try again now"),
        ("failed", "unavailable", "model cannot answer", "Try again now"),
        ("ready", "busy", "server is busy", "Trying again in"),
    ],
)
def test_what_a_server_that_answers_nothing_says_of_itself_is_shown(
    plain, open_page, files, state: str, kind: str, said: str, again: str
) -> None:
    page = open_page(plain)
    until_text(page, "status", "tiny")
    fill(page, files)
    status = 200 if state == "ready" else 503
    page.route("**/healthz", lambda route: route.fulfill(status=status, body=f'{{"status": "{state}"}}'))
    body = f'{{"error": {{"kind": "{kind}", "message": "these words of the server"}}}}'
    page.route("**/v1/rank", lambda route: route.fulfill(status=503, headers={"retry-after": "60"}, body=body))
    page.click("#go")
    notice = told(page)
    assert said in notice and "hese words of the server" in notice and again in page.inner_text("#notice-again")
    until_text(page, "status", {"failed": "model has failed", "ready": "tiny"}.get(state, said))


def test_a_busy_server_is_asked_again_when_it_said(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    refused = []

    def refuse(route: Any) -> None:
        refused.append(route)
        body = '{"error": {"kind": "queue_full", "message": "900 states are accepted already; ask again later"}}'
        route.fulfill(status=429, headers={"retry-after": "1"}, content_type="application/json", body=body)

    page.route("**/v1/rank", refuse, times=2)
    page.click("#go")
    assert "server is busy" in told(page) and "900 states" in told(page)
    answered(page)
    assert len(refused) == 2


def test_who_does_not_want_to_wait_says_so(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    headers = {"retry-after": "60"}
    page.route("**/v1/rank", lambda route: route.fulfill(status=429, headers=headers, body="no"), times=1)
    page.click("#go")
    assert "429" in told(page) and "60 s" in page.inner_text("#notice-again")
    page.click("#notice-stop")
    assert page.is_hidden("#notice") and kept(page)


def test_without_a_network_nothing_is_lost(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    page.route("**/*", lambda route: route.abort("internetdisconnected"))
    page.click("#go")
    assert "cannot be reached" in told(page) and "Nothing you entered is lost." in told(page)
    until_text(page, "status", "not reachable")
    page.unroute("**/*")
    page.click("#notice-again")
    answered(page)
    until_text(page, "status", "tiny")


def test_an_answer_that_is_cut_off_is_no_answer(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    cut = {"status": 200, "content_type": "application/json", "body": '{"order": [0,'}
    page.route("**/v1/rank", lambda route: route.fulfill(**cut), times=1)
    page.click("#go")
    assert "cannot be reached" in told(page) and page.is_hidden("#result")


def test_a_failure_of_the_server_may_be_tried_again(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    body = '{"error": {"kind": "work_failed", "message": "the model gave 2 utilities that are not finite"}}'
    page.route("**/v1/rank", lambda route: route.fulfill(status=500, body=body), times=1)
    page.click("#go")
    assert "server failed" in told(page) and "not finite" in told(page)
    page.click("#notice-again")
    answered(page)


def test_a_head_that_looks_nowhere_says_so(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    page.click("#go")
    answered(page)
    body = '{"error": {"kind": "bad_input", "message": "a MeanPoolHead attends to nothing"}}'
    page.route("**/v1/attention", lambda route: route.fulfill(status=422, body=body))
    page.click("#attention")
    assert "attends to nothing" in told(page)
    assert not page.is_checked("#attention") and page.is_visible("#result")


def test_the_last_answer_stays_while_the_next_is_refused(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files)
    page.click("#go")
    answered(page)
    before = page.inner_text("#ranked")
    page.route("**/v1/rank", lambda route: route.fulfill(status=504, body="{}"), times=1)
    page.click("#go")
    assert "took too long" in told(page)
    assert page.inner_text("#ranked") == before
