"""Tables and picture of docs/cost.md, from the rows of `benchmarks/cost.py`: `python -m benchmarks.cost_page`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cost.full.json"
PICTURE = ROOT / "docs" / "pictures" / "cost.png"
SMALL, LARGE = "512 x 512", "1024 x 1024"
BLUE, RED, GREY, INK, MUTED = "#2f6fb0", "#b5483c", "#a9adb3", "#1d1f22", "#6b7077"


def read_rows(path: Path = RESULTS) -> list[Row]:
    """Rows of a result file."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def rounded(value: float | None) -> str:
    """Three digits, as people read them."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text, the others numbers."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def reward_table(rows: Sequence[Row]) -> str:
    """Rewards from latents of pictures, cheapest first."""
    wanted = [row for row in rows if row["kind"] in ("reward", "ensemble") and "frame" not in row["size"]]
    by_name = {(row["what"], row["size"]): row for row in wanted}
    names = sorted({row["what"] for row in wanted}, key=lambda name: by_name[name, LARGE]["T FLOPs"])
    lines = []
    for name in names:
        small, large = by_name[name, SMALL], by_name[name, LARGE]
        shares = (small["% of HPSv3"], large["% of HPSv3"], large["% of HPSv3 with gradient"], large["% of CLIP-H"])
        numbers = (large["T FLOPs"], large["T FLOPs with gradient"])
        cost = [rounded(number) for number in (small["T FLOPs"], *numbers)]
        lines.append(
            [
                name,
                large.get("blocks", "") or "",
                *cost,
                *(f"{share:.0f} %" for share in shares),
                f"{large['% of a sampling step']:.0f} %",
                f"{large['% of sampling']:.2f} %",
            ]
        )
    head = ["reward on", "blocks", "512", "1024", "1024, gradient", "of HPSv3, 512", "of HPSv3, 1024"]
    return markdown([*head, "of HPSv3, gradient", "of CLIP-H", "of a step", "of 40 steps"], lines)


def memory_table(rows: Sequence[Row]) -> str:
    """What rewards at 1024 squared hold, smallest first."""
    rewards = [row for row in rows if row["kind"] == "reward" and row["size"] == LARGE]
    rewards.sort(key=lambda row: row["GB of parameters"] + row["GB at peak with gradient"])
    lines = [
        [
            row["what"],
            rounded(row["G parameters kept"]),
            rounded(row["G parameters dropped"]),
            rounded(row["M parameters of the adapter"]),
            rounded(row["M parameters of the head"]),
            *(rounded(row[name]) for name in ("GB of parameters", "GB at peak", "GB at peak with gradient")),
        ]
        for row in rewards
    ]
    for row in rows:
        if row["kind"] == "pixel reward" and row["size"] == LARGE:
            numbers = [row[name] for name in ("GB of parameters", "GB at peak", "GB at peak with gradient")]
            lines.append([row["what"], rounded(row["G parameters"]), "", "", "", *map(rounded, numbers)])
    head = ["1024 x 1024", "kept, G", "dropped, G", "adapter, M", "head, M"]
    return markdown([*head, "GB of parameters", "GB at peak", "GB, gradient"], lines)


def beside_table(rows: Sequence[Row]) -> str:
    """Pixel rewards, their parts, and generators, at both sizes."""
    kinds = ("pixel reward", "step", "sampling", "from a picture")
    parts = ("SD3.5 Medium: ", "HPSv3 ", "CLIP-H ")
    wanted = [
        row
        for row in rows
        if "frame" not in row["size"]
        and (row["kind"] in kinds or (row["kind"] == "part" and row["what"].startswith(parts)))
    ]
    by_name = {(row["what"], row["size"]): row for row in wanted}
    names = sorted({row["what"] for row in wanted}, key=lambda name: by_name[name, LARGE]["T FLOPs"])
    lines = []
    for name in names:
        large, small = by_name[name, LARGE], by_name.get((name, SMALL), {})
        numbers = (small.get("T FLOPs"), large["T FLOPs"], large["T FLOPs with gradient"])
        lines.append([name, *map(rounded, numbers)])
    return markdown(["what", "512", "1024", "1024, gradient"], lines)


def clip_table(rows: Sequence[Row]) -> str:
    """Rewards of clips and what stands beside them."""
    lines = [
        [
            row["what"],
            row["size"].replace("832 x 480, ", ""),
            rounded(row["T FLOPs"]),
            rounded(row["T FLOPs with gradient"]),
            rounded(row["GB of parameters"]),
            rounded(row["GB at peak"]),
            rounded(row["GB at peak with gradient"]),
        ]
        for row in rows
        if "frame" in row["size"] and row["kind"] != "step"
    ]
    head = ["832 x 480", "frames", "T FLOPs", "with gradient", "GB of parameters", "GB at peak", "GB, gradient"]
    return markdown(head, lines)


def text_table(rows: Sequence[Row]) -> str:
    """What the paper's base costs by text tokens, in multiply-accumulates."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "text":
            tokens, _, what = row["what"].removeprefix("SD3.5 Medium, ").partition(": ")
            found.setdefault(tokens, {})[what] = row["T MACs"]
    names = ("without its head", "reward", "whole network")
    lines = [[tokens, *(f"{cost[name]:.2f}" for name in names)] for tokens, cost in found.items()]
    return markdown(["T MACs at 1024 x 1024", "12 blocks", "12 blocks and head", "whole network, once"], lines)


TABLES = (reward_table, beside_table, memory_table, clip_table, text_table)


def draw(rows: Sequence[Row], path: Path = PICTURE) -> Path:
    """One reward at 1024 squared against what it replaces and what it stands beside, on a logarithmic scale."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    kinds = {"reward": BLUE, "ensemble": BLUE, "pixel reward": RED, "sampling": GREY}
    wanted = sorted((r for r in rows if r["kind"] in kinds and r["size"] == LARGE), key=lambda row: -row["T FLOPs"])
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}):
        figure = Figure(figsize=(8.4, 0.27 * len(wanted) + 1.0), dpi=92, layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(wanted):
            forward, both = row["T FLOPs"], row["T FLOPs with gradient"]
            axes.barh(place, forward, height=0.66, color=kinds[row["kind"]])
            if both is not None:
                axes.plot([forward, both], [place, place], color=INK, linewidth=0.8)
                axes.plot(both, place, marker="|", color=INK, markersize=7)
            told = rounded(forward) if both is None else f"{rounded(forward)} ({rounded(both)})"
            axes.text(1.12 * (both or forward), place, told, va="center", fontsize=8, color=MUTED)
        axes.set_yticks(range(len(wanted)), [_label(row) for row in wanted])
        axes.set_xscale("log")
        axes.set_xlim(1, 20000)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e4e6e9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlabel("T FLOPs at 1024 x 1024, forward; line and brackets: with the gradient to the latents")
        for name, colour in (("reward on latents", BLUE), ("reward on pixels", RED), ("sampling", GREY)):
            axes.barh([0], [0], color=colour, label=name)
        axes.legend(loc="upper right", frameon=False)
        file = io.BytesIO()
        figure.savefig(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A few colours are all there are: a palette is a third of the bytes.
    Image.open(file).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _label(row: Row) -> str:
    name: str = row["what"]
    return f"reward on {name}" if row["kind"] in ("reward", "ensemble") else name


if __name__ == "__main__":
    found = read_rows()
    print("\n\n".join(table(found) for table in TABLES))
    print(draw(found))
