"""Draw `pictures/oracle.png`: the candidates of some prompts, best first by the oracle, for people to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from common import ROOT

sys.path.insert(0, str(ROOT.parents[1] / "src"))
from dina_lrm.data import PreferenceData

CELL, MARGIN, LINE = 96, 6, 11


def label(row: dict[str, Any]) -> list[str]:
    """Three lines: utility, kind, detail."""
    origin = row["origin"]
    if origin["kind"] == "real":
        what = {"right": "as asked", "style": f"in {origin['style']}"}.get(origin["detail"], origin["concept"])
        return [f"{row['oracle_utility']:.2f} real", what]
    return [f"{row['oracle_utility']:.2f} {origin['kind']}", origin["detail"].replace("guidance", "g")]


def draw(data: PreferenceData, split: str, num_prompts: int) -> Image.Image:
    """One row a prompt, `num_prompts` of a split, evenly spread over it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    columns = data.candidates.drop_columns(["preview"])
    for row in columns.to_pylist():
        if row["candidate"].startswith(f"{split}-"):
            rows.setdefault(row["prompt"], []).append(row)
    prompts = list(rows)[:: max(1, len(rows) // num_prompts)][:num_prompts]
    across, tall = max(len(rows[p]) for p in prompts), CELL + 3 * LINE + 2 * MARGIN + 14
    sheet = Image.new("RGB", (across * (CELL + MARGIN) + MARGIN, tall * len(prompts)), "#f4f4f4")
    pen, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(10), ImageFont.load_default(13)
    for place, prompt in enumerate(prompts):
        top = place * tall + MARGIN
        pen.text((MARGIN, top), prompt, "black", large)
        best_first = sorted(rows[prompt], key=lambda row: -row["oracle_utility"])
        for column, row in enumerate(best_first):
            left = MARGIN + column * (CELL + MARGIN)
            picture = data.preview(row["candidate"]).resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(picture, (left, top + 18))
            for number, line in enumerate(label(row)):
                pen.text((left, top + 20 + CELL + number * LINE), line[:19], "#333333", small)
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "preferences")
    parser.add_argument("--split", default="test")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "pictures" / "oracle.png")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(PreferenceData.open(arguments.data), arguments.split, arguments.prompts).quantize(255).save(arguments.out)
