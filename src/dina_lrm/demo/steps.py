"""Steps that are done once: what a step found is kept beside the settings that it depends on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dina_lrm.report import StepTime
from dina_lrm.runtime.files import atomic_write

__all__ = ["Steps", "fingerprint"]

Found = TypeVar("Found")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


class Steps:
    """Runs the steps of a demo in order, tells their story, and skips what an earlier run finished.

    A step is finished when `steps/NAME.json` holds its result and the fingerprint of its settings and of all steps
    before it: a changed setting repeats its step and everything after it.
    """

    def __init__(self, folder: Path, total: int, log: Callable[[str], None]) -> None:
        """Args:
        folder: of the run.
        total: how many steps there will be.
        log: takes one line of the story.
        """
        self.times: list[StepTime] = []
        self._folder = folder / "steps"
        self._total = total
        self._log = log
        self._chain = ""

    def run(
        self, name: str, label: str, kind: type[Found], settings: Mapping[str, Any], work: Callable[[], Found]
    ) -> Found:
        """Do a step, or take what it found before.

        Args:
            name: of the step and its file.
            label: for people.
            kind: type of what it finds, as pydantic can read and write it.
            settings: JSON values that it depends on.
            work: does it.

        Returns:
            What it found.
        """
        self._chain = fingerprint({"before": self._chain, "name": name, "settings": settings})
        adapter = TypeAdapter(kind)
        path = self._folder / f"{name}.json"
        number = f"[{len(self.times) + 1}/{self._total}]"
        kept = self._kept(path, adapter)
        if kept is not None:
            found, seconds = kept
            self._log(f"{number} {label}: done before, {seconds:.1f} s then")
        else:
            self._log(f"{number} {label}")
            start = time.perf_counter()
            found = work()
            seconds = time.perf_counter() - start
            document = {"chain": self._chain, "seconds": seconds, "found": adapter.dump_python(found, mode="json")}
            with atomic_write(path) as file:
                file.write((json.dumps(document, indent=1) + "\n").encode())
            self._log(f"      {seconds:.1f} s")
        self.times.append(StepTime(name=name, label=label, seconds=seconds))
        return found

    def always(self, name: str, label: str, work: Callable[[], Found]) -> Found:
        """A step that is done each time."""
        self._log(f"[{len(self.times) + 1}/{self._total}] {label}")
        start = time.perf_counter()
        found = work()
        self.times.append(StepTime(name=name, label=label, seconds=time.perf_counter() - start))
        return found

    def _kept(self, path: Path, adapter: TypeAdapter[Found]) -> tuple[Found, float] | None:
        """A result of just this step with just these settings; anything else is done again."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["chain"] == self._chain:
                return adapter.validate_python(document["found"]), float(document["seconds"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            pass
        return None
