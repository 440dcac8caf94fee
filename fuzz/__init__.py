"""Inputs that nobody would send, by the hundred thousand: see RESULTS.md for what came of them.

    python -m fuzz.wire --inputs 100000       blobs: against the reader alone, and through the routes in memory
    python -m fuzz.routes --inputs 50000      a server in a process of its own: schemathesis, mutated bodies, raw sockets
    python -m fuzz.guided --inputs 200000     the same readers under atheris, which follows the branches they take

Everything is drawn from `--seed`. An input that crashes something, or is answered with 5xx, is written to `fuzz/failures/`.
schemathesis and atheris come with the extra `fuzz`: `pip install -e '.[fuzz]'`.
"""
