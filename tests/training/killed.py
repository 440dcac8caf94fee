"""Run as a process of its own: train, and die by SIGKILL at a chosen point, as an out-of-memory killer would have it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from dina_lrm.runtime import snapshots
from dina_lrm.training import Trainer, assemble
from tests.training.fake import load_fake, make_config


def die(*arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def main(data: str, out: str) -> None:
    """Die while the second snapshot is being written, half of its files on disk."""
    torch.set_num_threads(1)
    assemble.load_backbone = load_fake
    save_file, written = snapshots.save_file, []

    def save_some(*arguments: Any) -> None:
        written.append(arguments)
        save_file(*arguments)
        if len(written) == 5:
            die()

    snapshots.save_file = save_some
    Trainer(make_config(Path(data), Path(out)), quiet=True).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
