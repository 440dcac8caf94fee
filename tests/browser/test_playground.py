"""The playground, as a person uses it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dina_lrm.serve.settings import ServeSettings
from tests.browser.server import running
from tests.browser.waiting import until, until_text

PROMPT = "a red fox"


def fill(page: Any, files: list[Path], prompt: str = PROMPT) -> None:
    page.fill("#prompt", prompt)
    page.set_input_files("#files", files)


def ask(page: Any) -> None:
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])")
    page.wait_for_selector("#go:not([disabled])")


def places(page: Any) -> list[int]:
    """Numbers of the pictures in the order shown."""
    return [int(text) for text in page.locator("#ranked .number").all_inner_texts()]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_pictures_are_ranked_as_the_model_ranks_them(plain, open_page, files, golden_model) -> None:
    page = open_page(plain)
    fill(page, files[:3])
    page.locator("#options summary").click()
    page.fill("#draws", "5")
    page.fill("#seed", "7")
    ask(page)
    pictures = [Image.open(file).convert("RGB") for file in files[:3]]
    ranking = golden_model.rank(prompt=PROMPT, images=pictures, draws=5, seed=7)
    assert places(page) == [place + 1 for place in ranking.order]
    rewards = [number(text) for text in page.locator("#ranked .reward").all_inner_texts()]
    assert rewards == pytest.approx([float(ranking.reward.reward[place]) for place in ranking.order], abs=0.0051)
    lead = page.inner_text("#lead-told")
    assert f"a chance of {ranking.lead.probability:.2f}" in lead and "95 % sure" in lead
    assert "seed 7" in page.inner_text("#ranked-told") and "15 looks" in page.inner_text("#ranked-told")
    assert all("±" in text for text in page.locator("#ranked .utility").all_inner_texts())


def test_the_curve_goes_over_the_noise_levels(plain, open_page, files, golden_model) -> None:
    page = open_page(plain)
    fill(page, files[:2])
    ask(page)
    assert page.locator("#curve svg > g").count() == 2 and page.locator("#curve circle").count() == 18
    page.locator("#curve-numbers summary").click()
    cells = page.locator("#curve-table tbody tr").first.locator("td").all_inner_texts()
    pictures = [Image.open(file).convert("RGB") for file in files[:2]]
    levels = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    reward = golden_model.score(prompts=[PROMPT], images=pictures, sigmas=levels, draws=3, seed=0)
    expected = reward.draws[0].view(3, 9).mean(dim=0).tolist()
    assert [number(cell) for cell in cells] == pytest.approx(expected, abs=0.0051)


def test_a_curve_of_more_pictures_than_one_request_takes_is_asked_in_portions(golden_model, open_page, files) -> None:
    with running(lambda: golden_model, ServeSettings(max_queue=60)) as address:  # 27 states go to each picture's curve
        page = open_page(address)
        until_text(page, "status", "tiny")
        fill(page, files[:2] * 2)
        ask(page)
        until(page, "document.querySelectorAll('#curve svg > g').length === 4")
        page.locator("#curve-numbers summary").click()
        rows = page.locator("#curve-table tbody tr").all_inner_texts()
    assert [row.split("\t")[1:] for row in rows[:2]] == [row.split("\t")[1:] for row in rows[2:]]


def test_one_picture_has_a_reward_and_no_rival(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:1])
    page.locator("#options summary").click()
    page.check("#adaptive")
    ask(page)
    assert page.is_hidden("#lead") and page.inner_text("#ranked-title") == "Reward"
    assert page.locator("#ranked li").count() == 1


def test_where_the_model_looks_is_laid_over_the_pictures(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, [files[0], files[3]])
    ask(page)
    page.check("#attention")
    page.wait_for_selector("#ranked canvas")
    by_number = dict(zip(places(page), page.locator("#ranked canvas").all(), strict=True))
    sizes = [by_number[place].evaluate("one => [one.width, one.height]") for place in (1, 2)]
    assert sizes[0] == [2 * side for side in sizes[1]]  # one picture is twice as large as the other
    whole = by_number[1].evaluate("one => one.toDataURL()")
    options = page.locator("#query option").all_inner_texts()
    assert options[:2] == ["All its eyes", "Eye 1"] and len(options) > 2
    page.select_option("#query", "0")
    assert page.locator("#ranked canvas").count() == 2
    assert whole not in [one.evaluate("one => one.toDataURL()") for one in page.locator("#ranked canvas").all()]
    assert "not why" in page.inner_text("#maps-told")
    page.uncheck("#attention")
    assert page.locator("#ranked canvas").count() == 0 and page.is_hidden("#query")


def test_draws_until_the_best_is_known(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:3])
    page.locator("#options summary").click()
    page.check("#adaptive")
    page.select_option("#fusion", "tokens")
    page.fill("#sigmas", "0.3, 0.5")
    assert page.is_disabled("#draws") and "as needed" in page.inner_text("#options-told")
    with page.expect_response("**/v1/rank") as answered:
        ask(page)
    reply = answered.value.json()
    assert reply["reward"]["sigmas"] == pytest.approx([0.3, 0.5])
    assert 2 <= len(reply["reward"]["draws"][0]) <= 16 and reply["decided"] in (True, False)
    assert len(places(page)) == 3


def test_an_empty_seed_is_drawn_and_told(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:2])
    page.locator("#options summary").click()
    page.fill("#seed", "")
    ask(page)
    assert re.search(r"seed \d{3,}", page.inner_text("#ranked-told"))


def test_everything_by_keyboard_alone(plain, open_page, files) -> None:
    page = open_page(plain)
    # Heard from the beginning: the browser must know that somebody listens before it opens a dialog.
    page.on("filechooser", lambda chooser: chooser.set_files(files[:2]))
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector("#chosen li:nth-child(2)")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert "ranked" in page.inner_text("#answer-said")


def test_a_picture_is_removed_by_keyboard_and_the_focus_stays_near(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:3])
    page.get_by_label("Remove picture 2").focus()
    page.keyboard.press("Enter")
    assert page.locator("#chosen img").evaluate_all("all => all.map(one => one.alt)") == [
        "colour-0.png",
        "colour-2.png",
    ]
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove picture 2"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "choose"


@pytest.mark.parametrize(("event", "carrier"), [("drop", "dataTransfer"), ("paste", "clipboardData")])
def test_pictures_are_dropped_and_pasted(plain, open_page, files, event: str, carrier: str) -> None:
    page = open_page(plain)
    encoded = base64.b64encode(files[0].read_bytes()).decode()
    page.evaluate(
        """([event, carrier, encoded]) => {
            const bytes = Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "fox.png", { type: "image/png" }));
            carried.items.add(new File(["words"], "notes.txt", { type: "text/plain" }));
            const made = new Event(event, { bubbles: true, cancelable: true });
            Object.defineProperty(made, carrier, { value: carried });
            window.dispatchEvent(made);
        }""",
        [event, carrier, encoded],
    )
    assert page.locator("#chosen img").get_attribute("alt") == "fox.png"
    assert "notes.txt is no PNG" in page.inner_text("#ask-told")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", "  ", "judged for"),
        ("sigmas", "0.4, 1.5", "between 0 and 1"),
        ("sigmas", "much", "between 0 and 1"),
        ("draws", "0", "whole number"),
        ("seed", "-1", "whole number"),
    ],
)
def test_what_cannot_be_asked_is_said_at_its_field(plain, open_page, files, field: str, value: str, told: str) -> None:
    page = open_page(plain)
    fill(page, files[:1])
    page.locator("#options summary").click()
    page.fill(f"#{field}", value)
    page.click("#go")
    assert told in page.inner_text("#ask-told")
    assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == field
    assert page.is_hidden("#result")
    page.fill(f"#{field}", "1")
    assert page.inner_text("#ask-told") == "" and page.get_attribute(f"#{field}", "aria-invalid") is None


def test_no_picture_is_said_too(plain, open_page) -> None:
    page = open_page(plain)
    page.fill("#prompt", PROMPT)
    page.click("#go")
    assert "Choose one picture" in page.inner_text("#ask-told")


def test_what_was_typed_survives_a_reload(plain, open_page) -> None:
    page = open_page(plain)
    page.fill("#prompt", PROMPT)
    page.locator("#options summary").click()
    page.fill("#sigmas", "0.2 0.6")
    page.check("#adaptive")
    page.reload()
    assert page.input_value("#prompt") == PROMPT and page.input_value("#sigmas") == "0.2 0.6"
    assert page.is_checked("#adaptive")


def test_a_request_can_be_taken_back(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:2])
    page.route("**/v1/rank", lambda route: None)  # never answered
    page.click("#go")
    page.click("#cancel")
    page.wait_for_selector("#go:not([disabled])")
    assert page.is_hidden("#notice") and page.is_hidden("#result")
    page.unroute("**/v1/rank")
    ask(page)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_on_a_narrow_screen(plain, open_page, files, width: int) -> None:
    page = open_page(plain, width=width, height=700)
    fill(page, files, "a-very-long-word-that-no-line-can-hold-" * 2)
    page.locator("#options summary").click()
    ask(page)
    page.check("#attention")
    page.wait_for_selector("#ranked canvas")
    page.locator("#curve-numbers summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(plain, open_page, scheme: str) -> None:
    page = open_page(plain, color_scheme=scheme)
    ratios = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
                const hex = style.getPropertyValue(name).trim().slice(1);
                const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
                const [r, g, b] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
            const words = ["--ink", "--muted", "--blue", "--red", "--green", "--purple", "--amber", "--grey"];
            const pairs = words.flatMap((word) => ["--page", "--surface"].map((ground) => [word, ground]));
            pairs.push(["--on-blue", "--blue"], ["--blue", "--soft"], ["--ink", "--note"]);
            return Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]));
        }"""
    )
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_every_control_has_a_name(plain, open_page, files) -> None:
    page = open_page(plain)
    fill(page, files[:2])
    page.locator("#options summary").click()
    ask(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, progress, [role=img], img")]
            .filter((one) => one.checkVisibility())
            .filter((one) => !(one.labels?.length || one.ariaLabel || one.innerText?.trim() || one.hasAttribute("alt")))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
