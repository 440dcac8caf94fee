"""Readers under atheris, which follows the branches that its inputs take: `python -m fuzz.guided --inputs 200000`.

Blobs, multipart bodies and JSON requests: whatever the bytes, a reader gives a record or an error of ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.tally import FAILURES, need, say

READERS = ("blob", "form", "words")


def reader_of(name: str) -> Callable[[bytes], None]:
    """What is run on every input.

    Args:
        name: of the reader.

    Returns:
        It; it raises for what no reader may do.
    """
    from dina_lrm.errors import InputError
    from dina_lrm.scoring.wire import RankRequest, ScoreRequest
    from dina_lrm.serve.asked import SCORED_TENSORS, read_asked, read_latent_scores
    from dina_lrm.serve.refusals import Refusal
    from fuzz.wire import read

    def blob(data: bytes) -> None:
        read(data)
        read_asked_as("application/octet-stream", data)
        try:
            read_latent_scores(bytearray(data))
        except InputError:
            return

    def form(data: bytes) -> None:
        read_asked_as("multipart/form-data; boundary=x", data)

    def words(data: bytes) -> None:
        read_asked_as("application/json", data)

    def read_asked_as(kind: str, data: bytes) -> None:
        for record in (ScoreRequest, RankRequest):
            try:
                read_asked(record, kind, bytearray(data), 4, SCORED_TENSORS)
            except Refusal as refusal:
                if refusal.status_code >= 500:
                    raise

    return {"blob": blob, "form": form, "words": words}[name]


def corpus_of(name: str) -> list[bytes]:
    """Valid inputs of a reader."""
    from fuzz.corpus import blob_seeds, protocol_seeds, word_seeds

    if name == "blob":
        return [seed.body for seed in (*protocol_seeds(), *blob_seeds()) if len(seed.body) < 8192]
    return [seed.body for seed in word_seeds() if bool(seed.parts) == (name == "form")]


def child(name: str, inputs: int, seed: int) -> None:
    """Run one reader under atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["dina_lrm.scoring.blobs", "dina_lrm.serve", "python_multipart"]):
        run = reader_of(name)
    with tempfile.TemporaryDirectory() as place:
        for number, data in enumerate(corpus_of(name)):
            (Path(place) / str(number)).write_bytes(data)
        FAILURES.mkdir(exist_ok=True)
        options = [f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=8192", "-rss_limit_mb=0", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={FAILURES}/{name}-", place], run)
        atheris.Fuzz()


def main() -> int:
    """Run every reader in a process of its own, tell, and fail if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, help="this one alone, in this process")
    arguments = parser.parse_args()
    need("atheris")
    if arguments.reader:
        child(arguments.reader, arguments.inputs, arguments.seed)
    failed = 0
    say("| reader | inputs | branches met | resident, MiB | seconds |\n|---|--:|--:|--:|--:|")
    for name in READERS:
        command = [sys.executable, "-m", "fuzz.guided", "--reader", name, "--seed", str(arguments.seed)]
        started = time.monotonic()
        ran = subprocess.run(
            [*command, "--inputs", str(arguments.inputs // len(READERS))], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            failed += 1
            say(ran.stderr[-4000:])
        told = dict(
            line.split(":", 1) for line in ran.stderr.splitlines() if line.startswith("stat::") for line in [line[6:]]
        )
        covered = [
            word
            for line in ran.stderr.splitlines()
            if " cov: " in line
            for word in [line.split(" cov: ")[1].split()[0]]
        ]
        say(
            f"| {name} | {told.get('number_of_executed_units', '?').strip()} | {covered[-1] if covered else '?'} "
            f"| {told.get('peak_rss_mb', '?').strip()} | {time.monotonic() - started:.0f} |"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
