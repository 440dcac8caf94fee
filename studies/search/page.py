"""The page of the study, from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dina_lrm.report.figures import BLUE, GREEN, MUTED, svg_figure
from dina_lrm.report.html import document, paragraph, section, table
from dina_lrm.runtime.files import atomic_write
from studies.runs import SMALL

__all__ = ["write_page"]

Row = dict[str, Any]
COLOURS = {"state": BLUE, "clean": GREEN}


def write_page(results: Row, out: Path) -> Path:
    """Write `index.html` into a folder.

    Args:
        results: as `__main__.summarise` gives them.
        out: where the page goes.
    """
    body = "".join(
        [
            "<h1>Does it pay to judge a sample before it is finished?</h1>\n",
            paragraph(SMALL) if results["small"] else "",
            paragraph(_opening(results), "lead"),
            section("Pruning against best-of-N", _choices(results)),
            section("What a state tells, over sigma", _early(results)),
            section("What there is to win", _ladder(results)),
            section("Guidance, SMC and beam", _live(results)),
            f"<footer>Every number on this page is in <code>results/search.json</code>; <code>python -m studies.search</code> makes "
            f"it anew. Intervals are 95 % bootstraps over {results['prompts']['test']} prompts, each of a concept that neither the "
            "reward nor any choice has seen.</footer>",
        ]
    )
    page = out / "index.html"
    with atomic_write(page) as file:
        file.write(document("Search while sampling: the emoji world", body).encode())
    return page


def _opening(results: Row) -> str:
    def told(counted: str) -> str:
        rows = [row for row in results["choices"] if row["counted"] == counted]
        return ", ".join(f"{_plain(row['test'])} over best-of-{row['finished']}" for row in rows)

    counts = results["prompts"]
    return (
        f"The generator of the emoji world, {results['steps']} steps without guidance, the reward that comes with it, and the oracle "
        f"as judge, in points of its utility. Schedules of pruning were chosen on {counts['validation']} validation prompts and asked "
        f"once on {counts['test']} test prompts. At as many network passes: {told('network passes')}. A read of the reward costs "
        f"{results['read']:.2f} of a pass here (it keeps 7 of the generator’s 8 blocks; of SD3.5 Medium’s 24 it would be 12); with "
        f"the reads counted too: {told('passes and reads')}."
    )


def _last(results: Row, of: str, by: str) -> float:
    return float([row for row in results["early"] if row["of"] == of][-1][by][0])


def _plain(found: Sequence[float]) -> str:
    return f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"


def _cell(found: Sequence[float]) -> str:
    return f"{found[0]:+.3f} <span class='ends'>{found[1]:+.3f} to {found[2]:+.3f}</span>"


def _choices(results: Row) -> str:
    heads = ("against", "equal", "schedule chosen on validation", "passes, reads", "gain there", "gain on test",
             "the same cuts by chance", "by the oracle")  # fmt: skip

    def told(rows: list[Row]) -> str:
        return table(
            heads,
            [
                (
                    f"<b>best-of-{row['finished']}</b>",
                    row["counted"],
                    f"{row['chosen']} <span class='ends'>of {row['tried']}</span>",
                    f"{row['passes']}, {row['reads']}",
                    _cell(row["validation"]),
                    f"<b>{_cell(row['test'])}</b>",
                    _cell(row["by chance"]),
                    _cell(row["by the oracle"]),
                )
                for row in rows
            ],
        )

    note = paragraph(
        "Gains in the oracle’s points over best-of-N, pair by pair; both choose the last by the same reading of finished samples. "
        "Beside a schedule stands of how many it was chosen. "
        "The gain on validation is the best of many and so too high; the one on test is not. The last two columns keep the "
        f"schedule and change who cuts. No schedule begins more than {results['pool']} samples, which "
        f"{results['choices'][-1]['at most']} of the {results['choices'][-1]['tried']} in the last row come up against.",
        "quiet",
    )
    second = paragraph(
        "<b>A second look, after test had been seen.</b> Against best-of-4 validation chose schedules that cut by the state after one "
        "step, where it tells almost nothing (below): the best of many on few prompts. Among schedules that read predicted clean "
        "latents only the choice is narrower; these rows say what to try next, and are no test any more."
    )
    return told(results["choices"]) + note + second + told(results["second look"])


def _early(results: Row) -> str:
    def curve(by: str, what: str) -> str:
        def draw(axes: Any) -> None:
            for of, colour in COLOURS.items():
                rows = [row for row in results["early"] if row["of"] == of]
                sigma = [row["sigma"] for row in rows]
                mean, low, high = zip(*[[100 * value for value in row[by]] for row in rows], strict=True)
                axes.fill_between(sigma, low, high, color=colour, alpha=0.18, linewidth=0)
                axes.plot(sigma, mean, color=colour, marker="o", markersize=3.5)
            axes.axhline(50, color=MUTED, linewidth=0.8)
            axes.set_xlim(1.0, -0.02)
            axes.set_xlabel("sigma")
            axes.set_ylabel("right, %")

        return svg_figure(430, 250, f"early-{by}", draw, what)

    key = paragraph(
        '<span class="key" style="background:var(--blue)"></span>the state as it stands, '
        '<span class="key" style="background:var(--green)"></span>the clean latents that the step to it predicted.',
        "quiet",
    )
    figures = "".join(
        f"<figure><figcaption>{words}</figcaption>{curve(by, words)}</figure>\n"
        for by, words in (
            ("oracle", "Of two samples of a prompt, which the oracle prefers"),
            ("final", "which the reward itself will prefer when they are finished"),
        )
    )
    first = next(row for row in results["early"] if row["of"] == "clean")
    last = _last(results, "clean", "oracle")
    told = paragraph(
        f"After the first step, at sigma {first['sigma']:.2f}, the predicted clean latents already tell the oracle’s favourite in "
        f"{100 * first['oracle'][0]:.1f} % of couples; of the finished samples the reward tells it in {100 * last:.1f} %. What "
        "limits pruning here is not that states are noisy but that this reward hardly tells samples of one prompt apart, "
        "perhaps because most pairs that it learned from differ by more. (At sigma 0 the right plot compares the final verdict with "
        "itself: a finished picture is read as the score is, noised to 0.4, and a state just above 0 as it stands.)"
    )
    return f'{told}{key}<div class="plots">{figures}</div>\n'


def _ladder(results: Row) -> str:
    rows = [(f"best of {row['finished']}", _cell(row["reward"]), _cell(row["oracle"])) for row in results["ladder"]]
    note = paragraph("Gains over one sample; the oracle’s own choice is what a perfect reward would win.", "quiet")
    return table(("", "chosen by the reward", "chosen by the oracle"), rows) + note


def _live(results: Row) -> str:
    def rival(row: Row) -> str:
        return f"{_cell(row['gain'])} <span class='ends'>best of {row['finished']}, {row['passes']:.0f} passes</span>"

    rows = [
        (
            f"<b>{row['label']}</b>",
            f"{row['passes']:.0f}",
            _cell(row["validation"]),
            _cell(row["over one"]),
            *map(rival, row["over best of"]),
        )
        for row in results["live"]
    ]
    heads = ("chosen on validation", "operations, in passes", "over one sample, validation", "over one sample, test",
             "over the best-of-N that costs a little less, test", "a little more")  # fmt: skip
    note = paragraph(
        "Operations are counted, with all reads and gradients, text excepted. Each is compared with the samples that it began as, so "
        "with the same noises. Of guidance’s scales 0.05, 0.1 and 0.2, of SMC’s temperatures 0.1 and 0.3 and of a beam’s 2 and 4 "
        "branches the one that was best on validation is shown; SMC and beam read states, not predicted clean latents.",
        "quiet",
    )
    return table(heads, rows) + note
