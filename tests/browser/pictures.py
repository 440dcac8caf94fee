"""The pictures of the page in `docs/pictures`, made anew: `python -m tests.browser.pictures runs/demo/model`."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from dina_lrm.data import PreferenceData
from dina_lrm.scoring import RewardModel
from dina_lrm.serve.arena import Arena, ArenaSettings
from tests.browser.conftest import FLAGS, chromium_path
from tests.browser.server import running
from tests.browser.waiting import until

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "worlds" / "emoji"
PROMPT = "crown, blob style"
DETAILS = ("near", "right", "hue 0.9", "far")  # of the origins, one picture of each
VOTER = "docs25"
SIZE = {"width": 1180, "height": 760}


def main(model: Path, folder: Path) -> None:
    """Serve the emoji world, use the page, and keep what it shows."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    preferences = WORLD / "preferences"
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        files = candidates(PreferenceData.open(preferences), Path(place))
        # Nothing is scored ahead: pairs hang on the voter's name alone, and the picture is the same each time.
        arena = Arena.open(preferences, Path(place) / "votes.sqlite", ArenaSettings(ahead=0), split="test")
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        loaded = load(model)
        with running(lambda: loaded, arena=arena, name="emoji") as address:
            page.goto(address)
            until(page, "document.getElementById('status').dataset.state === 'ready'")
            playground(page, files)
            keep(page, folder / "page-playground.png")
            page.evaluate(f"localStorage.setItem('dina-lrm.voter', '{VOTER}')")
            page.goto(f"{address}#arena")
            page.wait_for_selector("#pair:not([hidden])")
            for number in range(6):
                until(page, f"document.getElementById('round').value === {number}")
                until(page, "document.getElementById('pair').getAttribute('aria-busy') === 'false'")
                page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
            until(page, "document.getElementById('round').value === 6")
            until(page, "['left', 'right'].every((side) => document.getElementById(side).naturalWidth)")
            keep(page, folder / "page-arena.png")
        browser.close()


def load(model: Path) -> RewardModel:
    """On the emoji world's base, wherever the model was trained."""
    return RewardModel.from_pretrained(model, base=str(WORLD / "pipeline"))


def candidates(data: PreferenceData, folder: Path) -> list[Path]:
    """Pictures of the prompt, from the one that was asked for to others."""
    rows = data.candidates.select(["candidate", "prompt", "origin"]).to_pylist()
    by_detail = {row["origin"]["detail"]: row["candidate"] for row in rows if row["prompt"] == PROMPT}
    paths = []
    for number, detail in enumerate(DETAILS):
        paths.append(folder / f"{number}.png")
        data.preview(by_detail[detail]).save(paths[-1])
    return paths


def playground(page: Any, files: list[Path]) -> None:
    """Ask, and look where the model looks."""
    page.fill("#prompt", PROMPT)
    page.set_input_files("#files", files)
    page.click("#go")
    page.wait_for_selector("#curve svg")
    page.check("#attention")
    page.wait_for_selector("#ranked canvas")
    page.mouse.move(5, 500)


def keep(page: Any, path: Path) -> None:
    """The whole page in 256 colours: a third of the bytes."""
    page.wait_for_timeout(400)  # transitions
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=8).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "pictures")
