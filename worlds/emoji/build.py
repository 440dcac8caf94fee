"""Build the emoji world from nothing: art, autoencoder, text encoders, judge, generator, preferences, measurements.

Each step is a script of its own and is skipped where what it makes is there already. On two CPU cores the whole takes
about three hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass

from common import ROOT


@dataclass(frozen=True)
class Step:
    """A script with its arguments, and the file that tells that it has been run."""

    command: tuple[str, ...]
    makes: str


STEPS = {
    "art": Step(("art.py",), "art/twemoji.parquet"),
    "judge-art": Step(("art.py", "--only-judge"), "build/judge-art/3d.parquet"),
    "vae": Step(("vae.py",), "build/vae/config.json"),
    "text": Step(("text.py",), "build/logs/text.json"),
    "judge": Step(("judge.py",), "build/logs/judge.json"),
    "transformer": Step(("transformer.py",), "build/transformer/config.json"),
    "assemble": Step(("assemble.py",), "pipeline/model_index.json"),
    "oracle": Step(("style_reader.py",), "oracle/results.json"),
    "preferences": Step(("pool.py",), "preferences"),
    "prompts": Step(("reask.py",), "preferences/candidates-reasked.parquet"),
    "measure": Step(("measure.py",), "measurements.json"),
}


def build(again: list[str]) -> None:
    """Run the steps whose results are missing, and those named in `again`."""
    for name, step in STEPS.items():
        if name not in again and (ROOT / step.makes).exists():
            print(f"{name}: there already ({step.makes})")
            continue
        print(f"{name}: {' '.join(step.command)}", flush=True)
        subprocess.run([sys.executable, *step.command], cwd=ROOT, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", nargs="*", choices=tuple(STEPS), default=[], help="steps to repeat")
    build(parser.parse_args().again)
