"""Run benchmarks: `python -m benchmarks [--full] [NAME ...]`. Tables come last; rows go to benchmarks/results/.

Every module of this folder with `main(quick: bool) -> list of rows` is one. A result file says at which commit and on what
hardware its rows were measured; git keeps the older ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Row = dict[str, Any]


def names() -> list[str]:
    """Modules that are benchmarks, without importing any."""
    found = (module.name for module in pkgutil.iter_modules([str(FOLDER)]) if not module.name.startswith("_"))
    return [name for name in found if "def main(" in (FOLDER / f"{name}.py").read_text(encoding="utf-8")]


def commit() -> str:
    """The commit that stands here, marked where the tree is not clean, new files included."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    found = git("rev-parse", "--short", "HEAD")
    # A new file that a result depends on counts as well; result files do not.
    dirty = git("status", "--porcelain", "--", "..", ":(exclude)results")
    return f"{found}-dirty" if found and dirty else found or "unknown"


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware() -> Row:
    """What the rows were measured on."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as text columns, numbers to four digits."""

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def save(name: str, quick: bool, rows: Sequence[Row], seconds: float) -> Path:
    """Write the result file of one benchmark."""
    path = FOLDER / "results" / f"{name}.{'quick' if quick else 'full'}.json"
    path.parent.mkdir(exist_ok=True)
    head = {
        "benchmark": name,
        "size": "quick" if quick else "full",
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    values = {**head, "seconds": round(seconds, 1), "hardware": hardware(), "rows": list(rows)}
    path.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def run(wanted: Iterable[str], quick: bool) -> int:
    """Run benchmarks one after another, then print their tables; 1 if one of them failed."""
    tables: list[str] = []
    failed: list[str] = []
    for name in wanted:
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            rows = importlib.import_module(f"benchmarks.{name}").main(quick=quick)
        except Exception:  # the others still run
            traceback.print_exc()
            failed.append(name)
            continue
        path = save(name, quick, rows, time.monotonic() - start)
        tables.append(f"{name}  ({path.relative_to(FOLDER.parent)})\n\n{table(rows)}\n")
    print("\n".join(tables))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    """Parse and run."""
    known = names()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0] if __doc__ else None
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of: {', '.join(known)} [default: all]")
    parser.add_argument(
        "--full", action="store_true", help="the size whose numbers are reported, instead of the quick one"
    )
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    sys.exit(run(given.names or known, quick=not given.full))


if __name__ == "__main__":
    main()
