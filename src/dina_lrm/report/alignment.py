"""The page of a run that teaches a generator: is it better, is the reward being fooled, what does it draw?

Everything comes from the run's folder: `metrics.jsonl`, `config.json`, `samples/step-N.png`. What is not there is not shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dina_lrm.errors import DataError, InputError
from dina_lrm.report.figures import AMBER, BLUE, GREEN, MUTED, PURPLE, RED, SURFACE, smooth, svg_figure
from dina_lrm.report.html import document, duration, paragraph, section, tile
from dina_lrm.runtime.files import atomic_write
from dina_lrm.runtime.metrics_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_run"]

_LEVEL_COLOURS = (BLUE, PURPLE, GREEN, AMBER, RED)
_SIGNALS = {
    "judge": "Judge {} below its best, in sd",
    "divergence": "Judge below its best while the reward rises, in sd: {}",
    "disagreement": "Gains against each other, rank correlation with its sign turned: {}",
    "spread": "Shift of the spread over noise of {}, in sd",
    "profile": "Gain of {} at one level beyond the others, in sd",
    "range": "Samples beyond the start’s range of {}, %",
    "grid": "Regular pattern in the pictures, in sd",
    "norm": "Shift of the latents’ size, in sd",
    "diversity": "Loss of diversity, %",
    "distance": "Distance to the start, % of the velocities’ power",
}
_SHARES = {"range", "diversity", "distance"}
_CURVES = {"loss": "Loss", "reward": "Reward of the rollouts", "grad_norm": "Norm of the gradient"}


@dataclass(frozen=True)
class _Run:
    """What a folder holds."""

    folder: Path
    updates: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    config: dict[str, Any]
    pictures: list[tuple[int, str]]

    @property
    def first_alarm(self) -> int | None:
        return min((int(row["step"]) for row in self.alarms), default=None)

    @property
    def last_good(self) -> int | None:
        """The last measurement without an alarm."""
        alarmed = {row["step"] for row in self.alarms}
        return max((int(row["step"]) for row in self.looks if row["step"] not in alarmed), default=None)

    def keys(self, start: str, *without: str) -> list[str]:
        """Figures of the measurements that begin so and are no part of another."""
        found = {key: None for row in self.looks for key in row if key.startswith(start)}
        return [key for key in found if key.rpartition("/")[2] not in without]


def draw_run(out: Path) -> Path:
    """Write `index.html` into a run's folder from what is there by now; safe to call while the run goes on.

    Args:
        out: folder of the run.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds no metrics.
    """
    run = _read(Path(out))
    body = "".join(
        [
            _opening(run),
            _findings(run),
            _gains(run),
            _pictures(run),
            _signals(run),
            _profiles(run),
            _learning(run),
            _configuration(run),
        ]
    )
    page = run.folder / "index.html"
    with atomic_write(page) as file:
        file.write(document(f"DiNa-LRM: {run.folder.name}", body).encode())
    return page


def _read(out: Path) -> _Run:
    rows: list[dict[str, Any]] = [dict(row) for row in read_metrics(out / "metrics.jsonl")]
    if not rows:
        raise DataError(f"{out} holds no metrics.jsonl with rows in it; give the folder of a run of dina-lrm align")
    kinds: dict[str, list[dict[str, Any]]] = {"update": [], "evaluation": [], "alarm": []}
    for row in rows:
        kinds.get(str(row.get("kind")), []).append(row)
    try:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    named = sorted((path.stem.partition("-")[2], path.name) for path in (out / "samples").glob("step-*.png"))
    pictures = [(int(step), f"samples/{name}") for step, name in named if step.isdigit()]
    return _Run(out, kinds["update"], kinds["evaluation"], kinds["alarm"], config, pictures)


# Words and numbers.


def _number(row: dict[str, Any], key: str) -> float:
    """A figure; NaN where it is missing or null."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _range(row: dict[str, Any], key: str) -> str:
    low, high = _number(row, f"{key}/low"), _number(row, f"{key}/high")
    return "" if math.isnan(low) else f"95 %: {low:+.2f} to {high:+.2f}"


def _opening(run: _Run) -> str:
    done = max((int(row["step"]) for row in [*run.updates, *run.looks]), default=0)
    planned = run.config.get("num_updates")
    kind = run.config.get("algorithm", {}).get("kind", "")
    told = f"{done} updates" + (f" of {planned}" if planned else "") + (f", {escape(str(kind))}" if kind else "")
    seconds = _number(run.updates[-1], "seconds") if run.updates else math.nan
    told += "" if math.isnan(seconds) else f", {duration(seconds)} of learning"
    return f"<h1>{escape(run.folder.name)}</h1>\n" + paragraph(f"{told}.", "lead") + _state(run) + _tiles(run)


def _state(run: _Run) -> str:
    if not run.looks:
        return paragraph("Nothing was measured on held-out prompts (<code>evaluation.every</code> is 0).", "note")
    if run.first_alarm is None:
        return paragraph(f"No alarm in {len(run.looks)} measurements.")
    good = "no measurement" if run.last_good is None else f"step {run.last_good}"
    return paragraph(
        f"<b>The reward is being fooled</b> since step {run.first_alarm}. Last good: <b>{good}</b>.", "note"
    )


def _tiles(run: _Run) -> str:
    if not run.looks:
        return ""
    last, judges = run.looks[-1], {key.partition("/")[2] for key in run.keys("judge/", "low", "high")}
    tiles = []
    for key in run.keys("gain/", "low", "high"):
        name = key.partition("/")[2]
        kind = "judge, not learned from" if name in judges else "reward, learned from"
        tiles.append(
            tile(f"Gain by {escape(name)}", f"{_number(last, key):+.2f}", f"{kind}; {_range(last, key)}".rstrip("; "))
        )
    return f'<div class="tiles">\n{"".join(tiles)}</div>\n' if tiles else ""


def _findings(run: _Run) -> str:
    if not run.alarms:
        return ""
    rows = "".join(
        f"<tr><td>{row.get('step')}</td><th scope='row'>{escape(str(row.get('name', '')))}</th>"
        f"<td>{_number(row, 'value'):.2f}</td><td>{_number(row, 'threshold'):.2f}</td>"
        f"<td>{escape(str(row.get('words', '')))}</td></tr>\n"
        for row in run.alarms
    )
    heads = "".join(f"<th>{name}</th>" for name in ("step", "alarm", "value", "limit", ""))
    return section(
        "What the monitor found",
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>\n',
    )


def _configuration(run: _Run) -> str:
    if not run.config:
        return ""
    text = escape(json.dumps(run.config, indent=2))
    return section("Configuration", f"<details><summary>config.json</summary><pre>{text}</pre></details>\n")


# Pictures.


def _pictures(run: _Run) -> str:
    if not run.pictures:
        return ""
    marked = {run.pictures[0][0]: "start", run.pictures[-1][0]: "now"}
    if run.alarms and run.last_good is not None:
        marked.setdefault(run.last_good, "last good")
    shown = [(step, name) for step, name in run.pictures if step in marked]
    rest = [(step, name) for step, name in run.pictures if step not in marked]
    more = f"<details><summary>{len(rest)} more</summary>{_sheets(rest, marked)}</details>\n" if rest else ""
    return section("Samples", paragraph("The same prompts and noise each time."), _sheets(shown, marked), more)


def _sheets(pictures: Iterable[tuple[int, str]], marked: dict[int, str]) -> str:
    def one(step: int, name: str) -> str:
        words = f"step {step}" + (f", {marked[step]}" if step in marked else "")
        return (
            f'<figure><figcaption>{words}</figcaption><img class="plot" src="{escape(name)}" alt="samples at {words}" '
            'loading="lazy"></figure>\n'
        )

    return f'<div class="plots">\n{"".join(one(step, name) for step, name in pictures)}</div>\n'


# Plots.


def _plots(drawn: Iterable[tuple[str, str]]) -> str:
    """Plots with their titles; a word in their place where matplotlib is not installed."""
    try:
        plots = "".join(
            f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>\n" for title, svg in drawn if svg
        )
    except InputError as error:
        return paragraph(escape(str(error)), "quiet")
    return f'<div class="plots">\n{plots}</div>\n' if plots else ""


def _gains(run: _Run) -> str:
    judges = {key.partition("/")[2] for key in run.keys("judge/", "low", "high")}
    keys = run.keys("gain/", "low", "high")
    plots = _plots(
        (
            f"{'Judge' if (name := key.partition('/')[2]) in judges else 'Reward'} {name}",
            _course(run, key, GREEN if name in judges else BLUE),
        )
        for key in keys
    )
    told = "Gains since the start on held-out prompts, sample by sample, with 95 % intervals over prompts, in their own units."
    return section("Is it better?", paragraph(told), _marks(run), plots) if keys else ""


def _marks(run: _Run) -> str:
    if run.first_alarm is None:
        return ""
    told = '<span class="key" style="background:var(--red)"></span>first alarm'
    if run.last_good is not None:
        told += ' <span class="key" style="background:var(--green)"></span>last good measurement'
    return paragraph(f"Verticals: {told}.", "quiet")


def _signals(run: _Run) -> str:
    keys = [key for key in run.keys("monitor/", "low", "high", "limit") if _signal(key) is not None]
    plots = _plots((_signal(key) or "", _course(run, key, RED, 100.0 if _is_share(key) else 1.0)) for key in keys)
    told = (
        "Each value against its limit (dashed); it is beyond when its whole 95 % interval is. sd: standard deviations of the "
        "start’s samples. A judge beyond its limit is an alarm; the signs that need no judge are one when two are beyond "
        "their limits together or one is far beyond."
    )
    return section("Is the reward being fooled?", paragraph(told), _marks(run), plots) if keys else ""


def _signal(key: str) -> str | None:
    _, kind, *names = key.split("/")
    return _SIGNALS[kind].format(", ".join(names)) if kind in _SIGNALS else None


def _is_share(key: str) -> bool:
    return key.split("/")[1] in _SHARES


def _profiles(run: _Run) -> str:
    keys = run.keys("profile_gain/")
    names = dict.fromkeys(key.split("/")[1] for key in keys)
    plots = _plots(
        (f"Reward {name}", _levels(run, [key for key in keys if key.split("/")[1] == name])) for name in names
    )
    told = "What the reward has risen by at each noise level, in standard deviations of the start’s samples."
    return section("What each level says", paragraph(told), plots) if keys else ""


def _learning(run: _Run) -> str:
    known = [name for name in _CURVES if any(not math.isnan(_number(row, name)) for row in run.updates)]
    plots = _plots((_CURVES[name], _curve(run, name)) for name in known)
    return section("Learning", plots) if plots else ""


def _course(run: _Run, key: str, colour: str, scale: float = 1.0) -> str:
    """One figure over measurements, with its interval, its limit and the marks."""
    rows = [row for row in run.looks if not math.isnan(_number(row, key))]
    if not rows:
        return ""
    steps = [int(row["step"]) for row in rows]
    value, low, high, limit = (
        [scale * _number(row, f"{key}{end}") for row in rows] for end in ("", "/low", "/high", "/limit")
    )

    def draw(axes: Axes) -> None:
        axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(steps, value, "o-", color=colour, markersize=5, markeredgecolor=SURFACE, markeredgewidth=1)
        if not math.isnan(limit[-1]):
            axes.plot(steps, limit, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2.5)))
        else:
            axes.axhline(0, color=MUTED, linewidth=0.8)
        _mark(axes, run)
        axes.set_xlabel("update")
        axes.margins(y=0.1)

    return svg_figure(340, 210, _id(key), draw, f"{escape(key)} over updates")


def _mark(axes: Axes, run: _Run) -> None:
    for step, colour in ((run.first_alarm, RED), (run.last_good if run.alarms else None, GREEN)):
        if step is not None:
            axes.axvline(step, color=colour, linewidth=1.4, linestyle=(0, (1, 1.5)), zorder=0)


def _levels(run: _Run, keys: Sequence[str]) -> str:
    """A line a level, named at its end."""
    steps = [int(row["step"]) for row in run.looks]

    def draw(axes: Axes) -> None:
        for place, key in enumerate(keys):
            colour = _LEVEL_COLOURS[place % len(_LEVEL_COLOURS)]
            axes.plot(steps, [_number(row, key) for row in run.looks], color=colour, label=key.rpartition("/")[2])
        axes.legend(frameon=False, fontsize=10, title="sigma", ncols=2, labelcolor="linecolor")
        _mark(axes, run)
        axes.set_xlabel("update")

    return svg_figure(340, 240, _id(keys[0]), draw, "gains at each noise level over updates")


def _curve(run: _Run, name: str) -> str:
    """What an update says, smoothed over what it said."""
    steps, values = [int(row["step"]) for row in run.updates], [_number(row, name) for row in run.updates]

    def draw(axes: Axes) -> None:
        axes.plot(steps, values, color=BLUE, linewidth=0.7, alpha=0.3)
        axes.plot(steps, smooth(values, max(3, len(values) // 12)), color=BLUE)
        _mark(axes, run)
        axes.set_xlabel("update")

    return svg_figure(340, 210, _id(name), draw, f"{name} over updates")


def _id(key: str) -> str:
    return "run-" + "".join(letter if letter.isalnum() else "-" for letter in key)
