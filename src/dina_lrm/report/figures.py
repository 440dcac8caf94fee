"""The plots, as SVG that takes its colours from the page.

matplotlib paints with stand-in colours, which become CSS variables afterwards: one picture serves light and dark, and
its words are text in the page's own font. matplotlib is imported inside the functions: it is an extra.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dina_lrm.errors import InputError
from dina_lrm.evals import AccuracyEstimate, CalibrationCard, SigmaProfile
from dina_lrm.report.results import TrainingFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KIND_COLOURS", "profile_figure", "reliability_figure", "spread_labels", "svg_figure", "training_figure"]

# Stand-ins: colours that nobody would choose, each for a variable of page.css.
INK, MUTED, GRID, SURFACE = "#010101", "#010102", "#010103", "#010104"
BLUE, RED, GREEN, PURPLE, GREY, AMBER = "#010201", "#010202", "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    BLUE: "blue",
    RED: "red",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "grey",
    AMBER: "amber",
}
KIND_COLOURS = {"concept": BLUE, "damage": RED, "style": PURPLE, "generator": GREEN, "mixed": GREY}
_RUN_COLOURS = (BLUE, RED, GREEN, PURPLE)
_DPI = 72  # one SVG unit is one CSS pixel


def svg_figure(width: float, height: float, name: str, draw: Callable[[Axes], None], described: str) -> str:
    """Draw one set of axes and return it as inline SVG of at most `width` pixels."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the report needs matplotlib; install it with: pip install 'dina-lrm[report]'") from error
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 12,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "text.color": INK,
        "lines.solid_capstyle": "round",
        "lines.linewidth": 2,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        return _themed(figure, width, name, described)


def _themed(figure: Figure, width: float, name: str, described: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids of axes and ticks repeat in every figure; on one page they may not.
    ids = re.findall(r'id="([^"]+)"', svg)
    for old in sorted(set(ids), key=len, reverse=True):
        svg = re.sub(rf'(id="|url\(#|href="#){re.escape(old)}(?=["\)])', rf"\g<1>{name}-{old}", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]+", r"font: \g<1>\g<2> var(--font)", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg class="plot" style="max-width: {width:g}px" viewBox="\1" role="img" aria-label="{described}">',
        svg,
        count=1,
    )
    return svg


def spread_labels(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones that are at least `distance` apart and inside [low, high], in the same order.

    Each place is moved as little as the others allow: neighbours that are too close share the push.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[int]] = []

    def span(members: list[int]) -> tuple[float, float]:
        half = distance * (len(members) - 1) / 2
        centre = sum(wanted[i] for i in members) / len(members)
        centre = min(max(centre, low + half), high - half)
        return centre - half, centre + half

    for i in order:
        clusters.append([i])
        while len(clusters) > 1 and span(clusters[-2])[1] + distance > span(clusters[-1])[0]:
            last = clusters.pop()
            clusters[-1] += last
    placed = [0.0] * len(wanted)
    for members in clusters:
        start = span(members)[0]
        for step, i in enumerate(members):
            placed[i] = start + step * distance
    return placed


@dataclass(frozen=True)
class _Line:
    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


def _label_ends(axes: Axes, lines: Sequence[_Line], x: float, distance: float) -> None:
    """Names at the right of the lines, in their colours, moved apart where they would touch."""
    low, high = axes.get_ylim()
    ends = [line.y[-1] for line in lines]
    places = spread_labels(ends, distance * (high - low), low, high)
    for line, place, end in zip(lines, places, ends, strict=True):
        axes.annotate(
            line.label,
            (line.x[-1], end),
            (x, place),
            color=line.colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 3}
            if abs(place - end) > distance * (high - low) / 4
            else None,
        )


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average that leaves NaN out and narrows at the ends."""
    half = window // 2
    found = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        found.append(sum(near) / len(near) if near else math.nan)
    return found


def training_figure(runs: Sequence[TrainingFacts], what: str) -> str:
    """A curve over steps of each run: `loss`, `accuracy` (in %) or `learning_rate`."""
    titles = {
        "loss": "training loss",
        "accuracy": "accuracy on its own pairs, %",
        "learning_rate": "learning rate in units of 0.0001",
    }

    def draw(axes: Axes) -> None:
        scale = {"loss": 1.0, "accuracy": 100.0, "learning_rate": 1e4}[what]
        lines = []
        # One rate serves all runs: they have the same schedule, which is the point of a control.
        for run, colour in zip(runs[:1] if what == "learning_rate" else runs, _RUN_COLOURS, strict=False):
            raw = [scale * v for v in getattr(run, what)]
            line = raw if what == "learning_rate" else smooth(raw, max(3, len(raw) // 12))
            if what != "learning_rate":
                axes.plot(run.at_step, raw, color=colour, linewidth=0.7, alpha=0.28)
            axes.plot(run.at_step, line, color=colour)
            lines.append(_Line(run.label, colour, run.at_step, line))
            if what == "accuracy" and run.validation:
                _validation_dots(axes, run, colour)
        axes.set_xlabel("optimiser step")
        axes.set_xlim(0, max(run.at_step[-1] for run in runs) * 1.02)
        axes.margins(y=0.08)
        if what == "accuracy":
            lowest = min((v for line in lines for v in line.y if not math.isnan(v)), default=50.0)
            axes.set_ylim(min(45.0, lowest - 3), 100)
        if what == "learning_rate":
            axes.set_ylim(bottom=0)
        elif len(lines) > 1:
            _label_inside(axes, lines)

    return svg_figure(340, 230, f"train-{what}", draw, titles[what])


def _validation_dots(axes: Axes, run: TrainingFacts, colour: str) -> None:
    """The mean over the measured levels, at each step where validation ran."""
    steps = sorted({point.step for point in run.validation})
    means = []
    for step in steps:
        found = [p.accuracy for p in run.validation if p.step == step and not math.isnan(p.accuracy)]
        means.append(100 * sum(found) / len(found) if found else math.nan)
    axes.plot(steps, means, "o", color=colour, markersize=6, markeredgecolor=SURFACE, markeredgewidth=1.5, zorder=5)


def _label_inside(axes: Axes, lines: Sequence[_Line]) -> None:
    """Names of the lines above and below them, at their right ends, inside the axes."""
    low, high = axes.get_ylim()
    ends = [line.y[-1] for line in lines]
    for line in lines:
        above = line.y[-1] == max(ends)
        tail = [v for v in line.y[-max(2, len(line.y) // 3) :] if not math.isnan(v)]
        place = (max(tail) if above else min(tail)) + (0.07 if above else -0.07) * (high - low)
        place = min(max(place, low + 0.04 * (high - low)), high - 0.04 * (high - low))
        axes.text(line.x[-1], place, line.label, color=line.colour, ha="right", va="center", fontweight="bold")


def profile_figure(profile: SigmaProfile, marked: Sequence[float], width: float) -> str:
    """Accuracy of one draw over sigma, a line for each kind of pair with its band, named at the right."""

    def draw(axes: Axes) -> None:
        lines = []
        for kind, estimates in sorted(profile.by_kind.items(), key=lambda item: -item[1][-1].value):
            colour = KIND_COLOURS.get(kind, AMBER)
            value, low, high = _percent(estimates)
            axes.fill_between(profile.sigmas, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(profile.sigmas, value, color=colour)
            best = max(range(len(value)), key=lambda i: value[i])
            axes.plot(
                profile.sigmas[best],
                value[best],
                "o",
                color=colour,
                markeredgecolor=SURFACE,
                markeredgewidth=1.5,
                zorder=5,
            )
            lines.append(_Line(kind, colour, profile.sigmas, value))
        value, _, _ = _percent(profile.all)
        axes.plot(profile.sigmas, value, color=INK, linewidth=1.6, linestyle=(0, (4, 2.5)))
        lines.append(_Line("all pairs", INK, profile.sigmas, value))
        bottom = min(48.0, *(min(line.y) - 3 for line in lines))
        axes.set_ylim(bottom, 101)
        axes.set_xlim(0, profile.sigmas[-1])
        axes.axhline(50, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axes.text(0.008, 50.4, "chance", color=MUTED, fontsize=11, va="bottom")
        for sigma in marked:
            axes.axvline(sigma, color=MUTED, linewidth=1.1, linestyle=(0, (1, 3)), zorder=0)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("sigma: amplitude of the noise on the latents")
        axes.set_ylabel("pairwise accuracy, %")
        axes.set_xticks([s / 10 for s in range(0, 1 + round(profile.sigmas[-1] * 10), 1 if width > 500 else 2)])
        _label_ends(axes, lines, profile.sigmas[-1] * 1.025, 0.062)

    height = 400 if width > 500 else 330
    return svg_figure(width, height, f"profile{width:g}", draw, "accuracy over sigma by kind of pair")


def _percent(estimates: Sequence[AccuracyEstimate]) -> tuple[list[float], list[float], list[float]]:
    return (
        [100 * e.value for e in estimates],
        [100 * e.low for e in estimates],
        [100 * e.high for e in estimates],
    )


def reliability_figure(card: CalibrationCard, name: str) -> str:
    """Share of votes that the favoured picture got against the probability that the model gave it."""

    def draw(axes: Axes) -> None:
        x = [100 * b.confidence for b in card.reliability]
        value, low, high = _percent([b.share for b in card.reliability])
        axes.plot([50, 100], [50, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 2.5)))
        axes.text(
            79, 80.2, "says what happens", color=MUTED, fontsize=11, rotation=45, rotation_mode="anchor", va="bottom"
        )
        axes.fill_between(x, low, high, color=BLUE, alpha=0.14, linewidth=0)
        axes.vlines(x, low, high, color=BLUE, linewidth=1.2)
        axes.plot(x, value, "o-", color=BLUE, markersize=6.5, markeredgecolor=SURFACE, markeredgewidth=1.2)
        axes.set_xlim(49, 101)
        axes.set_ylim(min(45.0, min(low) - 2), 101)
        axes.set_box_aspect(1)
        axes.set_xlabel("predicted P(favoured is preferred), %")
        axes.set_ylabel("share of its votes, %")
        axes.text(
            0.97,
            0.04,
            f"ECE {100 * card.ece:.1f} points",
            color=INK,
            fontweight="bold",
            ha="right",
            transform=axes.transAxes,
        )

    return svg_figure(380, 380, f"reliability-{name}", draw, "reliability diagram")
