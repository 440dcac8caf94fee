from __future__ import annotations

import io

from dina_lrm.runtime.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_the_last_step_gets_a_line() -> None:
    out = io.StringIO()
    with ProgressBar("train", 3, file=out) as bar:
        for _ in range(3):
            bar.advance(loss=0.25, pairs_per_second=10)
    assert out.getvalue().splitlines() == ["train 3/3 loss 0.25 pairs per second 10, 0:00 left"]


def test_without_a_terminal_lines_come_at_intervals() -> None:
    out = io.StringIO()
    with ProgressBar("train", 4, done=1, seconds_between_lines=0, file=out) as bar:
        bar.advance(loss=1)
        bar.advance(loss=float("nan"))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["2/4", "3/4"]
    assert "nan" not in out.getvalue()


def test_switched_off_it_is_silent_and_still_counts() -> None:
    out = io.StringIO()
    with ProgressBar("train", 2, enabled=False, file=out) as bar:
        bar.advance(loss=1)
    assert out.getvalue() == ""
    assert bar.done == 1


def test_a_terminal_sees_a_bar_with_figures() -> None:
    out = Terminal()
    with ProgressBar("train", 2, file=out) as bar:
        bar.advance(loss=0.125)
        bar.advance(loss=0.125)
    assert "train" in out.getvalue()
    assert "loss 0.125" in out.getvalue()
    assert "2/2" in out.getvalue()
