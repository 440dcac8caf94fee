"""Counts by outcome, inputs that failed, and the memory of a process."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path

FAILURES = Path(__file__).parent / "failures"
OF_THE_PARSER = (b"Invalid HTTP request received.", b"The headers are too large.")  # before there is a request
SHARES = (0.1, 0.3, 0.3, 0.3)  # of the inputs, after which memory is looked at; the first fills caches and pools
MOST_GROWTH = 48.0  # MiB after the first share: what allocators keep, and no leak
PROMISED = {200, 202, 400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 422, 426, 429, 499, 504}


class Tally:
    """What came of many inputs.

    Attributes:
        outcomes: how often each.
        failures: inputs that did what none may do.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[Path] = []

    @property
    def total(self) -> int:
        """Inputs so far."""
        return self.outcomes.total()

    def fail(self, told: str, data: bytes) -> None:
        """Keep an input that failed.

        Args:
            told: what happened.
            data: the input.
        """
        FAILURES.mkdir(exist_ok=True)
        path = FAILURES / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(told + "\n")
        self.failures.append(path)
        self.outcomes["FAILED"] += 1
        say(f"failed: {told.splitlines()[-1] if told else told} ({path})")

    def answered(self, status: int, body: bytes, data: bytes) -> None:
        """Count an answer; one that is 5xx, or is no answer of ours, is a failure.

        Args:
            status: of HTTP.
            body: of the answer.
            data: what was asked.
        """
        if status not in PROMISED:
            return self.fail(f"status {status}: {body[:500]!r}", data)
        if status < 300:
            self.outcomes[f"{status}"] += 1
            return None
        if body in OF_THE_PARSER:
            self.outcomes[f"{status} by the parser"] += 1
            return None
        try:
            kind = json.loads(body)["error"]["kind"]
        except (ValueError, KeyError, TypeError):
            return self.fail(f"status {status} without a reason: {body[:500]!r}", data)
        self.outcomes[f"{status} {kind}"] += 1
        return None

    def table(self) -> str:
        """Outcomes as a table, most frequent first."""
        rows = "\n".join(f"| {name} | {count} |" for name, count in self.outcomes.most_common())
        return f"| outcome | inputs |\n|---|--:|\n{rows}\n| all | {self.total} |"


def told_shares() -> str:
    """The parts of the inputs after which memory is looked at."""
    return ", ".join(f"{share:.0%}" for share in accumulate(SHARES))


def resident_mib(pid: int | str = "self") -> float:
    """Memory of a process that is in RAM, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def say(text: str) -> None:
    """To whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def need(package: str) -> None:
    """End here, with the line to type, where a package of the extra is not installed.

    Args:
        package: by its name in Python.

    Raises:
        SystemExit: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise SystemExit(f"{package} is not installed: pip install -e '.[fuzz]'")
