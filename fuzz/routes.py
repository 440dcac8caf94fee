"""A server in a process of its own: `python -m fuzz.routes --inputs 50000`.

A tenth of the inputs are schemathesis', drawn from the server's own OpenAPI; a tenth are requests spoiled as bytes on a raw
socket; the rest are valid requests with body and headers spoiled by their structure. The process must live, answer no input
with 5xx, give the same score at the end as at the beginning, give its memory back, and end well.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.corpus import GOLDEN, Seed, blob_seeds, protocol_seeds, word_seeds
from fuzz.mutations import Mutator
from fuzz.tally import MOST_GROWTH, OF_THE_PARSER, SHARES, Tally, need, resident_mib, say, told_shares
from tests.serve.arena_folders import picture_folder

PATIENCE = 120
BYTES_OF_A_PROMPT = 4 * (205 * 48 + 40)  # of the tiny model
SILENCE = 0.25  # seconds without a byte after which a raw request is given up
HEADERS = (
    "x-drm-model",
    "x-client-id",
    "x-request-id",
    "x-drm-deadline-ms",
    "x-api-key",
    "authorization",
    "host",
    "expect",
)


@dataclass
class Served:
    """A running server.

    Attributes:
        process: of it.
        port: of its socket on 127.0.0.1.
    """

    process: subprocess.Popen[bytes]
    port: int

    def memory(self) -> float:
        """In MiB."""
        return resident_mib(self.process.pid)

    def prompts(self) -> float:
        """What its cache of encoded prompts holds, in MiB: new ones are remembered, up to a bound of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (encoded,) = re.findall(r'^dina_lrm_prompts_total\{cache="miss".*\} (\S+)$', text, re.MULTILINE)
        return float(encoded) * BYTES_OF_A_PROMPT / 2**20

    def score(self) -> float:
        """Of a request that is always the same."""
        seed = protocol_seeds()[0]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", seed.path, seed.body, {"content-type": seed.kind, **seed.headers})
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        assert response.status == 200, body
        return float(body["raw_scores"][0])


@contextlib.contextmanager
def running() -> Iterator[Served]:
    """Start the server on the tiny model, with an arena, and end it."""
    with tempfile.TemporaryDirectory() as place, open(Path(place) / "log", "w+b") as log:
        picture_folder(Path(place) / "arena")
        program = [sys.executable, "-c", "from dina_lrm.cli.main import main; main()", "serve", "--port", "0"]
        program += ["--model", f"tiny={GOLDEN / 'reward'}", "--base", str(GOLDEN / "pipeline"), "--max-wait-ms", "0"]
        process = subprocess.Popen([*program, "--arena", str(Path(place) / "arena")], stderr=log)
        try:
            yield Served(process, wait_until_ready(process, Path(log.name)))
        finally:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port, once the model answers.

    Raises:
        RuntimeError: the server ended, or did not get there in time.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r'"address": "http://127\.0\.0\.1:(\d+)"', log.read_text())
        if found:
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return int(found[1])
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(log.read_text()[-2000:])


def ask_by_schema(served: Served, tally: Tally, count: int, seed: int) -> None:
    """Let schemathesis ask what the server says that may be asked, rightly and wrongly.

    Args:
        served: the server.
        tally: to count in.
        count: of inputs, over all routes.
        seed: of the inputs.
    """
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    each = max(1, count // (len(operations) * len(modes)))
    settings = hypothesis.settings(
        max_examples=each, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    for operation in operations:
        for mode in modes:

            @hypothesis.seed(seed)
            @settings
            @hypothesis.given(operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                response = case.call()
                kept = f"{case.method} {case.formatted_path} {case.headers} {case.query} {case.body!r}".encode()
                tally.answered(response.status_code, response.content, kept[:100_000])

            # A route without anything to get wrong has no wrong inputs.
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                ask()


def ask_spoiled(served: Served, tally: Tally, count: int, rng: random.Random) -> None:
    """Valid requests, spoiled by their structure.

    Args:
        served: the server.
        tally: to count in.
        count: of inputs.
        rng: whence they come.
    """
    seeds, mutator = [*protocol_seeds(), *blob_seeds(), *word_seeds()], Mutator(rng)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    for _ in range(count):
        seed = rng.choice(seeds)
        kind, body = spoiled(mutator, rng, seed)
        headers = {"content-type": kind, **seed.headers}
        if rng.random() < 0.15:
            name = rng.choice((*headers, *HEADERS))
            headers[name] = mutator.text(headers.get(name, "tiny"))
        method = rng.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS")) if rng.random() < 0.02 else "POST"
        path = (
            seed.path
            if rng.random() > 0.02
            else rng.choice((seed.path + "/", "/v1", "//", "/%00", "/static/..%2f..%2fx"))
        )
        kept = f"{method} {path} {headers}\n".encode() + body
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            tally.answered(response.status, response.read(), kept)
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            if served.process.poll() is not None:
                tally.fail(f"the server ended with {served.process.returncode}", kept)
                return
            tally.outcomes[f"closed ({type(error).__name__})"] += 1
        except (ValueError, UnicodeError):  # a header that no client can send
            connection.close()
            tally.outcomes["not sent"] += 1
    connection.close()


def spoiled(mutator: Mutator, rng: random.Random, seed: Seed) -> tuple[str, bytes]:
    """A body and its content type; a few are left whole."""
    roll = rng.random()
    if roll < 0.05:
        return seed.kind, seed.body
    if roll < 0.1:
        return seed.kind, mutator.raw(seed.body)
    if seed.parts:
        parts = seed.parts
        if rng.random() < 0.4:
            parts = (("request", mutator.json(seed.words)), *parts[1:])
        return mutator.form(parts)
    return seed.kind, mutator.json(seed.words) if seed.words is not None else mutator.blob(seed.body)


def ask_raw(served: Served, tally: Tally, count: int, rng: random.Random) -> None:
    """Requests spoiled as bytes: request line, headers, lengths, chunks.

    Args:
        served: the server.
        tally: to count in.
        count: of inputs.
        rng: whence they come.
    """
    seeds, mutator = [*protocol_seeds(), *word_seeds()], Mutator(rng)
    for _ in range(count):
        seed = rng.choice(seeds)
        data = mutator.raw(raw_request(seed, chunked=rng.random() < 0.3)) if rng.random() < 0.7 else b""
        if not data:  # the head alone is spoiled: more of it is then understood
            head, gap, body = raw_request(seed, chunked=rng.random() < 0.3).partition(b"\r\n\r\n")
            data = mutator.raw(head) + gap + body
        found = exchange(served.port, data)
        if served.process.poll() is not None:
            tally.fail(f"the server ended with {served.process.returncode}", data)
            return
        statuses = [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3})", found, re.MULTILINE)]
        statuses = [status for status in statuses if status != 100]
        if any(status >= 500 for status in statuses):
            tally.fail(f"status {statuses}: {found[:500]!r}", data)
        elif not statuses:
            tally.outcomes["raw: no answer" if not found else "raw: no HTTP"] += 1
        else:
            by = " by the parser" if any(told in found for told in OF_THE_PARSER) else ""
            tally.outcomes[f"raw: {statuses[0]}{by}"] += 1


def raw_request(seed: Seed, chunked: bool) -> bytes:
    """A request as it stands on the wire."""
    headers = {"host": "127.0.0.1", "content-type": seed.kind, **seed.headers}
    body = seed.body
    if chunked:
        headers["transfer-encoding"] = "chunked"
        half = len(body) // 2
        body = (
            b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part) + b"0\r\n\r\n"
        )
    else:
        headers["content-length"] = str(len(body))
    lines = [f"POST {seed.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def exchange(port: int, data: bytes) -> bytes:
    """What comes back, until nothing more does."""
    found = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=SILENCE) as connection:
        connection.sendall(data)
        while not is_whole(found):
            part = connection.recv(65536)
            if not part:
                break
            found += part
    return found


def is_whole(found: bytes) -> bool:
    """Whether the last answer in what came is there to its end."""
    head, gap, body = found[found.rfind(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(gap) and length is not None and len(body) >= int(length[1])


def main() -> int:
    """Run, tell, and fail if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    need("schemathesis")
    warnings.simplefilter("ignore")
    rng, tally = random.Random(arguments.seed), Tally()
    started, sizes = time.monotonic(), []
    with running() as served:
        wanted = served.score()
        for share in SHARES:
            part = round(arguments.inputs * share)
            ask_by_schema(served, tally, part // 10, rng.randrange(2**32))
            ask_raw(served, tally, part // 10, rng)
            ask_spoiled(served, tally, part - 2 * (part // 10), rng)
            sizes.append(served.memory() - served.prompts())
        prompts = served.prompts()
        if abs(served.score() - wanted) > 1e-5:
            tally.fail("the score of the same request has changed", b"score")
        served.process.send_signal(signal.SIGTERM)
        if served.process.wait(PATIENCE) != 0:
            tally.fail(f"the server ended with {served.process.returncode}", b"end")
    say(f"{tally.total} inputs in {time.monotonic() - started:.0f} s, seed {arguments.seed}")
    told = ", ".join(f"{size:.0f}" for size in sizes)
    say(
        f"resident less remembered prompts, after {told_shares()} of them: {told} MiB; prompts at the end {prompts:.0f} MiB"
    )
    if sizes[-1] - sizes[0] > MOST_GROWTH:
        tally.fail(f"memory grew from {sizes[0]:.0f} to {sizes[-1]:.0f} MiB", b"memory")
    say(tally.table())
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
