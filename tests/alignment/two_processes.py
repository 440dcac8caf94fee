"""Run under torchrun: align on two processes, then say what each of them ended with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from dina_lrm.alignment import Aligner
from tests.alignment.test_aligner import measuring
from tests.alignment.tiny import configured


def main(world: str, out: str) -> None:
    torch.set_num_threads(1)
    evaluation = measuring(
        num_prompts=3, batch_size=2
    )  # one batch a prompt: two for the first process, one for the other
    config = configured(Path(world), Path(out), evaluation=evaluation, monitor={"action": "warn"}, prompts_per_update=1)
    aligner = Aligner(config, quiet=True)
    aligner.run()
    assert aligner.run_state is not None
    sums = {name: float(value.detach().double().sum()) for name, value in aligner.run_state._parameters.items()}
    # Lines of two processes on one pipe may mix: each writes a file of its own.
    Path(out, f"ended-{os.environ['RANK']}.json").write_text(json.dumps(sums))


if __name__ == "__main__":
    main(*sys.argv[1:])
