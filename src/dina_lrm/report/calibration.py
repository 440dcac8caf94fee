"""Reliability diagrams of a calibration, as a picture: what was predicted against the votes, before and after."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dina_lrm.errors import InputError
from dina_lrm.evals import CalibrationCurve, CalibrationReport, ReliabilityBin
from dina_lrm.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_reliability"]

_COLUMNS = 5
_BEFORE, _AFTER, _INK, _MUTED = "#9aa0a6", "#1a66c2", "#202124", "#5f6368"


def write_reliability(report: CalibrationReport, path: Path) -> None:
    """Write a PNG with a diagram for each way of asking.

    Args:
        report: with its curves.
        path: of the PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("diagrams need matplotlib; install it with: pip install 'dina-lrm[report]'") from error
    rows = math.ceil(len(report.curves) / _COLUMNS)
    columns = min(_COLUMNS, len(report.curves))
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows + 0.5), dpi=110, layout="constrained")
    places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, curve, quality in zip(places, report.curves, report.calibration.quality, strict=False):
        _draw(axes, curve)
        after = "not judged" if quality.after is None else f"{100 * quality.after.ece:.1f} points"
        axes.set_title(
            f"{curve.label}\nECE {100 * quality.before.ece:.1f} to {after}",
            fontsize=8,
            color=_INK,
        )
    for axes in places[len(report.curves) :]:
        axes.set_visible(False)
    places[0].legend(fontsize=7, frameon=False, loc="lower right")
    figure.supxlabel("predicted P(favoured is preferred), %", fontsize=9, color=_MUTED)
    figure.supylabel("share of its votes, %", fontsize=9, color=_MUTED)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    with atomic_write(path) as out:
        out.write(file.getvalue())


def _draw(axes: Axes, curve: CalibrationCurve) -> None:
    axes.plot([50, 100], [50, 100], color=_MUTED, linewidth=0.8, linestyle=(0, (4, 2.5)))
    _line(axes, curve.before, _BEFORE, "before", 0)
    if curve.after:
        _line(axes, curve.after, _AFTER, "after, on other prompts", 1)
    axes.set_box_aspect(1)
    axes.grid(color="#e8eaed", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7, colors=_MUTED)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Axes, bins: Sequence[ReliabilityBin], colour: str, label: str, layer: int) -> None:
    x = [100 * one.confidence for one in bins]
    low, high = [100 * one.share.low for one in bins], [100 * one.share.high for one in bins]
    axes.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.6, zorder=2 + layer)
    y = [100 * one.share.value for one in bins]
    axes.plot(x, y, "o-", color=colour, linewidth=1.4, markersize=3.5, label=label, zorder=2 + layer)
