"""Run under torchrun: train on two processes, then say what each of them ended with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from dina_lrm.training import Trainer, assemble
from tests.training.fake import load_fake, make_config


def main(data: str, out: str, max_candidates: str = "") -> None:
    """Two micro steps of two pairs a process make eight pairs a step; or as many prompts."""
    torch.set_num_threads(1)
    assemble.load_backbone = load_fake
    changes = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_candidates": int(max_candidates or 0) or None}
    trainer = Trainer(make_config(Path(data), Path(out), **changes), quiet=True)
    trainer.run()
    assert trainer.network is not None
    sums = {name: float(value.double().sum()) for name, value in trainer.network.head.state_dict().items()}
    # Lines of two processes on one pipe may mix: each writes a file of its own.
    Path(out, f"ended-{os.environ['RANK']}.json").write_text(json.dumps(sums))


if __name__ == "__main__":
    main(*sys.argv[1:])
