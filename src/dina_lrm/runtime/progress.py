"""Progress on stderr: a bar where somebody watches, a line now and then where nobody does."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar"]


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class ProgressBar:
    """Steps done, figures of the last one, time left.

    Attributes:
        total: steps of the whole run.
        done: steps behind us.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        *,
        enabled: bool = True,
        seconds_between_lines: float = 20.0,
        file: TextIO | None = None,
    ) -> None:
        """Args:
        label: what is being done.
        total: steps of the whole run.
        done: steps that an earlier run has made.
        enabled: False keeps silent.
        seconds_between_lines: where stderr is no terminal, one line this often.
        file: instead of stderr.
        """
        self.label, self.total, self.done = label, total, done
        self._first = done
        self._enabled = enabled
        self._file = file or sys.stderr
        self._between = seconds_between_lines
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._smooth: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._enabled and self._file.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=Console(file=self._file),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, **figures: float) -> None:
        """One step further.

        Args:
            **figures: shown by their names, three digits each, smoothed over about twenty steps.
        """
        self.done += 1
        if not self._enabled:
            return
        weight = max(1 / (self.done - self._first), 0.05)
        for name, value in figures.items():
            before = self._smooth.get(name, value)
            self._smooth[name] = before if math.isnan(value) else before + weight * (value - before)
        text = " ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in self._smooth.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, figures=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self._between or self.done == self.total:
            self._last_line = now
            left = (now - self._started) / (self.done - self._first) * (self.total - self.done)
            print(f"{self.label} {self.done}/{self.total} {text}, {_seconds(left)} left", file=self._file, flush=True)
