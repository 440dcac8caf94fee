"""The page of the study, from its results."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from dina_lrm.report.figures import BLUE, GREEN, MUTED, RED, svg_figure
from dina_lrm.report.html import document, paragraph, section, table
from dina_lrm.runtime.files import atomic_write
from studies.hacking.settings import ARMS
from studies.runs import SMALL

__all__ = ["write_page"]

SHOWN = "single-0"  # the run whose samples are shown


def write_page(results: dict[str, Any], root: Path, out: Path) -> Path:
    """Write `index.html` and a few sheets of samples.

    Args:
        results: of `summarise`, with the rows of the grid score.
        root: folder of the study.
        out: where the page goes.
    """
    body = "".join(
        [
            paragraph(SMALL) if results["small"] else "",
            _opening(results),
            _runs(results),
            _courses(results),
            _samples(results, root, out),
            _signs(results),
            _scales(results),
            _grids(results),
        ]
    )
    page = out / "index.html"
    with atomic_write(page) as file:
        file.write(document("DiNa-LRM: the monitor against hacking", body).encode())
    return page


def _fallen(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results["runs"] if row["fallen_at"] is not None]


def _healthy(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results["runs"] if row["fallen_at"] is None]


def _at_alarm(row: dict[str, Any], how: str) -> float | None:
    """How far the judge had fallen when the first alarm came."""
    at = row["alarm_at"][how]
    return None if at is None else float(row["fall"][row["steps"].index(at)])


def _opening(results: dict[str, Any]) -> str:
    judging = [row for row in results["runs"] if row["seed"] not in results["chosen_on"]]
    seen = f"Seed {', '.join(map(str, results['chosen_on']))} chose the limits; what follows counts "
    seen += (
        "the other seeds only."
        if judging
        else "that seed itself, for no other has been run: it says nothing of new runs."
    )
    seen += (
        " The arm with the high rate is measured every 2 updates, which was decided after a first try of all seeds: measured every 6, "
        "like the others, its judge went from well to 0.6 sd below its best between two measurements, and the alarm came late."
    )
    results = results | {"runs": judging or results["runs"]}
    fallen, healthy = _fallen(results), _healthy(results)
    amount = results["fall"]
    told: dict[str, str] = {}
    for how, words in (("all", "With the judge"), ("without judges", "Without any judge")):
        at = [row["alarm_at"][how] for row in fallen]
        in_time = [a for a, row in zip(at, fallen, strict=True) if a is not None and a <= row["fallen_at"]]
        leads = [row["fallen_at"] - a for a, row in zip(at, fallen, strict=True) if a is not None]
        falls = [fall for row in fallen if (fall := _at_alarm(row, how)) is not None]
        false = sum(bool(names) for row in healthy for names in row["alarms"][how])
        looks = sum(len(row["steps"]) for row in healthy)
        text = (
            f" the monitor alarmed before the judge had fallen by {amount:g} sd in {len(in_time)} of "
            f"{len(fallen)} runs that came to that"
        )
        if leads:
            text += f", {median(leads):.0f} updates ahead (median), the judge being {max(falls):.2f} sd below its best at most"
        text += f"; it alarmed in {false} of {looks} measurements of the {len(healthy)} runs that did not."
        gains = [[row["kept"][how]["gain"], max(0, *row["course"]["judge"]["value"])] for row in results["runs"]]
        text += (
            f" Stopped at the first alarm, the {len(gains)} runs keep {sum(g for g, _ in gains):+.2f} of the "
            f"{sum(b for _, b in gains):+.2f} points that they gained at their best moments, by the judge, added up; at their ends "
            f"they stand at {sum(row['course']['judge']['value'][-1] for row in results['runs']):+.2f}."
        )
        told[words] = text
    with_judge, without = told.values()
    if with_judge == without:
        told = {"With the judge or without any": with_judge}
    return (
        "<h1>Does the monitor tell when the reward is being fooled?</h1>\n"
        + paragraph(
            "ReFL climbs a latent reward on the emoji world: twice so that it must end badly, twice with more care. The oracle, "
            "from which nothing is learned, says when pictures really become worse; the monitor only speaks, so that what "
            f"would have come is seen. {results['samples']} held-out samples a measurement, the same prompts and noise each time; "
            f"sd is the standard deviation of the start’s samples ({results['judge_std']:.2f} points of the oracle).",
            "lead",
        )
        + "".join(paragraph(text) for text in (seen, *(f"<b>{words}</b>{text}" for words, text in told.items())))
    )  # fmt: skip


def _runs(results: dict[str, Any]) -> str:
    def step(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    rows = [
        (
            f"{escape(ARMS[row['arm']].label)}, seed {row['seed']}",
            f"{max(row['course']['judge']['value']):+.2f}",
            f"{row['course']['judge']['value'][-1]:+.2f}",
            f"{row['course']['reward']['value'][-1]:+.2f}",
            step(row["fallen_at"]),
            *(
                step(row["alarm_at"][how])
                + ("" if (fall := _at_alarm(row, how)) is None else f" <span class='ends'>{fall:+.2f} sd</span>")
                for how in ("all", "without judges")
            ),
            f"{row['kept']['without judges']['gain']:+.2f} <span class='ends'>at {row['kept']['without judges']['step']}</span>",
        )
        for row in results["runs"]
    ]
    heads = ("run", "judge, best gain", "judge, last", "reward, last", f"judge {results['fall']:g} sd below its best at update",
             "first alarm, all", "first alarm, no judge",
             "judge’s gain of what is kept, no judge")  # fmt: skip
    return section(
        "Runs",
        table(heads, rows),
        paragraph("Beside an alarm: how far below its best the judge was at that measurement.", "quiet"),
    )


def _courses(results: dict[str, Any]) -> str:
    plots = "".join(
        f"<figure><figcaption>{escape(arm.label)}</figcaption>{_course(results, name)}</figure>\n"
        for name, arm in ARMS.items()
    )
    return section(
        "Reward and judge",
        paragraph(
            "Gains since the start: "
            '<span class="key" style="background:var(--blue)"></span>reward, '
            '<span class="key" style="background:var(--green)"></span>oracle; a line a seed. Verticals: '
            '<span class="key" style="background:var(--red)"></span>first alarm of the monitor without judges.'
        ),
        f'<div class="plots">\n{plots}</div>\n',
    )


def _course(results: dict[str, Any], arm: str) -> str:
    def draw(axes: Any) -> None:
        for row in results["runs"]:
            if row["arm"] == arm:
                for name, colour in (("reward", BLUE), ("judge", GREEN)):
                    axes.plot([0, *row["steps"]], [0, *row["course"][name]["value"]], color=colour, linewidth=1.4)
                if (at := row["alarm_at"]["without judges"]) is not None:
                    axes.axvline(at, color=RED, linewidth=1.1, linestyle=(0, (1, 2)))
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel("update")

    return svg_figure(430, 250, f"course-{arm}", draw, f"gains over updates, {ARMS[arm].label}")


def _samples(results: dict[str, Any], root: Path, out: Path) -> str:
    row = next((row for row in results["runs"] if f"{row['arm']}-{row['seed']}" == SHOWN), None)
    if row is None:
        return ""
    at = row["alarm_at"]["without judges"] or row["steps"][-1]
    shown = []
    for step, words in {0: "start", at: "first alarm without judges", row["steps"][-1]: "end"}.items():
        source = root / "runs" / SHOWN / "samples" / f"step-{step:06d}.png"
        if source.is_file():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / source.name)
            shown.append(
                f'<figure><figcaption>update {step}, {words}</figcaption><img class="plot" src="{source.name}" '
                f'alt="samples at update {step}"></figure>\n'
            )
    told = f"{escape(ARMS[row['arm']].label)}, seed {row['seed']}: the same prompts and noise."
    return section("What it looks like", paragraph(told), f'<div class="plots">\n{"".join(shown)}</div>\n')


def _signs(results: dict[str, Any]) -> str:
    def span(values: list[float]) -> str:
        return (
            f"{median(values):+.2f} <span class='ends'>{values[0]:+.2f} to {values[-1]:+.2f}</span>" if values else "–"
        )

    rows = [
        (
            f"<b>{escape(name)}</b>",
            f"{sign['limit']:g}",
            span(sign["well"]),
            span(sign["ill"]),
            f"{100 * sign['told_apart']:.0f} %" if sign["ill"] and sign["well"] else "–",
        )
        for name, sign in results["signs"].items()
    ]
    return section(
        "Each sign alone",
        paragraph(
            "Its value (median and range) in all measurements of all runs where the judge is within 0.05 sd of its best, and "
            "where it is more than 0.15 sd below it; and how often the second is the larger, of a pair drawn at random. Under 50 % a "
            "sign points the wrong way here: these runs made samples of a prompt less alike, not more."
        ),
        table(("sign", "limit", "judge well", "judge falling", "told apart"), rows),
    )


def _scales(results: dict[str, Any]) -> str:
    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        lead = f"{median(row['leads']):+.0f}" if row["leads"] else "–"
        fall = f"{median(row['falls']):.2f} ({max(row['falls']):.2f})" if row["falls"] else "–"
        return (
            f"{row['scale']:g} ×" + (" <b>as shipped</b>" if row["scale"] == 1 else ""),
            f"{row['in_time']} of {row['fallen']}",
            lead,
            fall,
            f"{row['false']} of {row['healthy']}",
        )

    heads = ("limits", "alarm in time", "updates ahead, median", "judge’s fall at the alarm, sd: median (most)",
             "false alarms, healthy measurements")  # fmt: skip
    return section(
        "Other limits",
        paragraph(
            "The rule without judges, all its limits times a number, on the runs that did not choose them. Those share prompts, noise "
            "and rewards with the runs that did: they are other runs, not another world."
        ),
        table(heads, map(cells, results["scales"])),
    )


def _grids(results: dict[str, Any]) -> str:
    plain, *lined = results["grids"]
    rows = [
        (
            row["period"],
            row["strength"],
            f"{row['mean']:+.2f}",
            f"{row['shift']:+.1f}",
            f"{100 * row['told_apart']:.0f} %",
        )
        for row in lined
    ]
    heads = (
        "period, pixels",
        "grey levels of 255",
        "mean score",
        "shift on the same picture, sd",
        "told from another without",
    )
    return section(
        "What the grid score sees",
        paragraph(
            f"Lines drawn on real art, scored with period 16. Art without them: {plain['mean']:+.2f}, sd {plain['std']:.2f}."
        ),
        table(heads, rows),
    )
