"""Text encoders and VAE as they are loaded."""

from __future__ import annotations

import threading

from dina_lrm.backbones.encoders import reasons

PATIENCE = 20


def test_one_thread_loads_at_a_time() -> None:
    """Libraries lay networks out without storage by a switch that all threads share."""
    asked, inside = threading.Event(), threading.Event()

    def load() -> None:
        asked.set()
        with reasons("another"):
            inside.set()

    thread = threading.Thread(target=load)
    with reasons("one"):
        thread.start()
        assert asked.wait(PATIENCE) and not inside.wait(0.1)
    assert inside.wait(PATIENCE)
    thread.join()
