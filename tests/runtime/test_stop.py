from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dina_lrm.runtime.stop import StopRequest


@pytest.fixture(autouse=True)
def _python_handles_interrupts() -> Iterator[None]:
    """A shell in the background hands down an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_a_second_interrupt_acts_as_ever() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_it_only_stands_by() -> None:
    seen: list[str | None] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.signal_name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
