"""Python modules of the tests on two processes that talk to each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def on_two_processes(module: str, *arguments: str | Path, timeout: float = 600) -> None:
    """Run one under torchrun; processes that fail, or wait for each other for good, are a failure and none stays behind."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, *LAUNCH, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        told = process.communicate(timeout=timeout)[0].decode()
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends the processes that it has started
        process.wait(60)
        raise
    assert process.returncode == 0, told
