"""Who comes in, and how much of a body: each guard around an app that only reads."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from pydantic import SecretStr

from dina_lrm.errors import ConfigError
from dina_lrm.serve.app import create_app
from dina_lrm.serve.errors import DrainingError
from dina_lrm.serve.gate import Gate
from dina_lrm.serve.guards import BodyGuard, HostGuard, KeyGuard, OriginGuard, client_of
from dina_lrm.serve.logs import AccessLog, JsonFormatter, describe
from dina_lrm.serve.models import ModelPool
from dina_lrm.serve.observer import Observer
from dina_lrm.serve.refusals import Refusal
from dina_lrm.serve.settings import ServeSettings, read_key_file, read_keys
from tests.serve.fake import by_clockwork, in_loop, settle
from tests.serve.serving import call, scope_of

KEYS = (SecretStr("the-first-key-of-all"), SecretStr("the-second-key-of-all"))


async def reader(scope, receive, send) -> None:
    """Says how much it read, and for whom."""
    size = 0
    try:
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
    except Refusal as refusal:
        await refusal.response()(scope, receive, send)
        return
    body = json.dumps({"size": size, "client": client_of(scope)}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@in_loop
async def test_a_body_is_counted_while_it_comes_and_forgotten_when_it_is_answered() -> None:
    gate = Gate()
    guard = BodyGuard(reader, ServeSettings(max_body_bytes=10, max_held_bytes=15), gate)
    assert (await call(guard, "/", [b"12345", b"67890"]))[0] == 200
    assert (await call(guard, "/", [b"12345", b"678901"]))[0] == 413
    assert (await call(guard, "/", [], {"content-length": "11"}))[0] == 413
    assert (await call(guard, "/", [], {"content-length": "x"}))[0] == 400
    assert (await call(guard, "/", [], {"content-length": "-1"}))[0] == 400
    assert gate.held_bytes == 0
    gate.held_bytes = 6
    assert (await call(guard, "/", [b"1234567890"]))[0] == 503
    assert gate.held_bytes == 6


@in_loop
async def test_one_client_holds_no_more_than_its_share(monkeypatch) -> None:
    """Bodies that came whole are held until their requests are answered."""
    gate, go_on, inside = Gate(), asyncio.Event(), []

    async def slow(scope, receive, send):
        assert not (await receive())["more_body"]
        inside.append(client_of(scope))
        await go_on.wait()
        await receive_nothing(scope, send)

    async def receive_nothing(scope, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def refusing(scope, receive, send):
        try:
            await slow(scope, receive, send)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)

    settings = ServeSettings(max_body_bytes=60, max_held_bytes=100, max_client_share=0.5)
    server = KeyGuard(BodyGuard(refusing, settings, gate), (), lambda path: False, takes_names=True)

    def ask(client: str, size: int) -> asyncio.Task[tuple[int, dict[str, str], bytes]]:
        parts = [{"type": "http.request", "body": b"x" * size, "more_body": False}]
        return asyncio.create_task(whole(server, client, parts))

    first, second = ask("ann", 30), ask("ann", 20)
    await settle(lambda: len(inside) == 2)
    refused = await ask("ann", 10)
    assert refused[0] == 429 and refused[1]["retry-after"] == "1" and b"50 bytes of the 50" in refused[2]
    other = ask("bob", 50)
    await settle(lambda: len(inside) == 3)
    assert (await ask("eve", 10))[0] == 503  # nobody has room now
    go_on.set()
    assert [(await one)[0] for one in (first, second, other)] == [200] * 3
    assert gate.held_bytes == 0
    assert (await ask("ann", 60))[0] == 200  # a single body may be as large as bodies may be


async def whole(app, client: str, parts) -> tuple[int, dict[str, str], bytes]:
    """As `call`, with a body that comes as one message."""
    sent = []

    async def receive():
        return parts.pop()

    async def send(message):
        sent.append(message)

    await app(scope_of("/", {"x-client-id": client}), receive, send)
    head = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], head, sent[1]["body"]


@by_clockwork
async def test_a_body_may_be_slow_as_long_as_it_brings_something() -> None:
    async def trickle(scope, receive, send):
        async def slowly():
            await asyncio.sleep(3)
            return await receive()

        await guard(scope, slowly, send)

    guard = BodyGuard(reader, ServeSettings(body_timeout=10, body_bytes_per_second=1), Gate())
    assert (await call(trickle, "/", [b"0123456789"] * 10))[0] == 200
    assert (await call(trickle, "/", [b"0"] * 10))[0] == 408
    status, headers, _ = await call(guard, "/", [b"0"], hang=True)
    assert status == 408 and headers["connection"] == "close"


@in_loop
async def test_clients_are_told_apart_by_key_name_or_address() -> None:
    async def who(guard, **headers) -> str:
        return json.loads((await call(guard, "/", headers={k.replace("_", "-"): v for k, v in headers.items()}))[2])[
            "client"
        ]

    keyed = KeyGuard(reader, KEYS, lambda path: path == "/")
    first, second = [await who(keyed, x_api_key=key.get_secret_value()) for key in KEYS]
    assert first != second and first.startswith("key ") and "the-first" not in first
    assert await who(keyed, x_client_id="me") == "peer 127.0.0.1"  # a name costs nothing, so it buys no turns
    free = KeyGuard(reader, (), lambda path: False, takes_names=True)
    assert await who(free) == "peer 127.0.0.1"
    assert await who(free, x_client_id="me") == "client me"
    assert await who(free, x_client_id="m" * 65) == "peer 127.0.0.1"
    assert await who(KeyGuard(reader, (), lambda path: False), x_client_id="me") == "peer 127.0.0.1"


OWN, PROXY = "http://127.0.0.1:8000", "https://rewards.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a trainer, or curl
        ({"origin": OWN}, 200),
        ({"origin": OWN, "sec-fetch-site": "same-origin"}, 200),
        ({"origin": PROXY.upper(), "sec-fetch-site": "cross-site"}, 200),  # allowed, whatever the proxy calls us
        ({"origin": PROXY}, 200),
        ({"origin": "https://other.example", "sec-fetch-site": "same-origin"}, 200),  # a proxy that changes the host
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
@in_loop
async def test_pages_of_other_sites_cannot_post(headers: dict[str, str], status: int) -> None:
    guard = OriginGuard(reader, [PROXY])
    asked = {"host": "127.0.0.1:8000", **headers}
    found, _, body = await call(guard, "/", headers=asked)
    assert found == status and (status == 200 or b'"cross_site"' in body)
    assert (await call(guard, "/", headers=asked, method="DELETE"))[0] == status
    assert (await call(guard, "/", headers=asked, method="GET"))[0] == 200


@in_loop
async def test_the_app_refuses_pages_of_other_sites_and_takes_no_names_from_strangers(heard) -> None:
    for no_auth in (False, True):
        pool = ModelPool(Observer())
        app = create_app(pool, ServeSettings(no_auth=no_auth))
        ours = {"host": "a", "origin": "http://a", "content-type": "application/json", "x-client-id": "me"}
        with heard.at_level(logging.INFO, "dina_lrm.serve"):
            theirs = await call(app, "/v1/score_images", [b"{}"], {**ours, "origin": "http://b"})
            assert theirs[0] == 403
            assert (await call(app, "/v1/score_images", [b"{}"], ours))[0] not in (200, 403)
        assert heard.records[-1].facts["client"] == ("peer 127.0.0.1" if no_auth else "client me")
        await pool.close()


def test_an_allowed_origin_is_a_name_of_the_server() -> None:
    settings = ServeSettings(allowed_origins=(PROXY, "http://[::2]:90")).guarded()
    assert {"rewards.example", "::2", "localhost"} <= set(settings.allowed_hosts)
    for wrong in ("rewards.example", "https://rewards.example/", "*", "null", "https://a b"):
        with pytest.raises(ConfigError, match="scheme and host"):
            ServeSettings(allowed_origins=(wrong,)).guarded()


@in_loop
async def test_other_things_than_requests_pass_the_guards() -> None:
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    settings, gate = ServeSettings(), Gate()
    for guard in (
        BodyGuard(app, settings, gate),
        KeyGuard(app, KEYS, lambda _: False),
        OriginGuard(app, []),
        HostGuard(app, ["localhost"]),
        AccessLog(app, Observer(), gate),
    ):
        await guard({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"] * 5


@by_clockwork
async def test_the_gate_waits_for_those_inside() -> None:
    gate = Gate()
    gate.check()
    gate.enter()
    assert not await gate.drain(5)
    with pytest.raises(DrainingError):
        gate.check()
    asyncio.get_running_loop().call_later(5, gate.leave)
    assert await gate.drain(10)


@in_loop
async def test_the_log_names_the_request_and_no_prompt(heard) -> None:
    async def failing(scope, receive, send):
        raise ValueError("a girl walking in the street")

    with heard.at_level(logging.INFO, "dina_lrm.serve"):
        status, headers, body = await call(AccessLog(failing, Observer(), Gate()), "/x", headers={"x-request-id": "r1"})
    assert status == 500 and headers["x-request-id"] == "r1" and b"girl" not in body
    lines = [JsonFormatter().format(record) for record in heard.records]
    rows = [json.loads(line) for line in lines]
    assert [row["event"] for row in rows] == ["failed", "request"]
    assert rows[0]["error"] == "ValueError" and "failing" in rows[0]["where"][-1]
    assert rows[1]["status"] == 500 and rows[1]["request_id"] == "r1" and rows[1]["kind"] == "internal"
    assert not any("girl" in line for line in lines)


def test_our_own_errors_are_told_in_full() -> None:
    assert describe(ConfigError("this and that"))["message"] == "this and that"
    assert "message" not in describe(KeyError("a prompt"))


def test_a_refusal_is_one_short_line() -> None:
    refusal = Refusal(400, "bad_input", "one\n two\t" + "x" * 5000)
    assert refusal.detail.startswith("one two x") and len(refusal.detail) == 1000


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_others_are_not_let_near_a_server_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="no API key is set"):
        ServeSettings(host=host).guarded()
    assert ServeSettings(host=host, no_auth=True).guarded().allowed_hosts == ()
    assert ServeSettings(host=host, api_keys=KEYS).guarded().allowed_hosts == ()
    named = ServeSettings(host=host, no_auth=True, allowed_hosts=("rewards.example",)).guarded()
    assert {"rewards.example", "localhost"} <= set(named.allowed_hosts) and "" not in named.allowed_hosts
    assert named.guarded() == named


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1"])
def test_a_server_of_this_machine_answers_to_its_own_names(host: str) -> None:
    for no_auth in (False, True):
        assert {"localhost", host} <= set(ServeSettings(host=host, no_auth=no_auth).guarded().allowed_hosts)


@pytest.mark.parametrize("wrong", ["rewards.example:8000", "http://rewards.example", "*", "a b", ""])
def test_an_allowed_host_is_a_name_or_an_address(wrong: str) -> None:
    assert "[::2]" in ServeSettings(allowed_hosts=("[::2]", "::2", "10.0.0.7")).guarded().allowed_hosts
    with pytest.raises(ConfigError, match="without a port"):
        ServeSettings(allowed_hosts=(wrong,)).guarded()


def test_loading_over_http_needs_keys() -> None:
    with pytest.raises(ConfigError, match="needs API keys"):
        ServeSettings(allow_load=True).guarded()
    assert ServeSettings(allow_load=True, api_keys=KEYS).guarded().allow_load


def test_keys_do_not_show_in_what_is_printed() -> None:
    assert "the-first-key" not in repr(ServeSettings(api_keys=KEYS)) + ServeSettings(api_keys=KEYS).model_dump_json()


def test_keys_are_read_from_lines_and_lists(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the trainer\n  0123456789abcdef \n\n0123456789abcdef\nfedcba9876543210\n")
    assert [key.get_secret_value() for key in read_key_file(file)] == ["0123456789abcdef", "fedcba9876543210"]
    assert len(read_keys("0123456789abcdef, fedcba9876543210,", ",")) == 2
    assert read_keys("", ",") == ()
    for text in ("short", "with space in between it", "schlüssel-der-lang-genug-ist"):
        with pytest.raises(ConfigError, match="API key 1 must be"):
            read_keys(text, ",")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_key_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "missing")
