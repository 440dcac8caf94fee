"""Multipart bodies: whole ones are read, others are told."""

from __future__ import annotations

import httpx2
import pytest

from dina_lrm.errors import DataError
from dina_lrm.serve.multipart import read_multipart

KIND = "multipart/form-data; boundary=x"


def test_what_a_client_writes_is_read_in_order() -> None:
    files = [("images", ("a.png", b"\r\n--y\r\n" * 50, "image/png")), ("images", ("b.png", b"", "image/png"))]
    request = httpx2.Request("POST", "http://a", data={"request": "{}"}, files=files)
    parts = read_multipart(request.headers["content-type"], request.read(), 3)
    assert [(part.name, bytes(part.body)) for part in parts] == [
        ("request", b"{}"),
        ("images", b"\r\n--y\r\n" * 50),
        ("images", b""),
    ]
    with pytest.raises(DataError, match="more than 2 parts"):
        read_multipart(request.headers["content-type"], request.read(), 2)


PART = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nbody\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("multipart/form-data", PART, "names no boundary"),
        (KIND, b"", "cut off"),
        (KIND, PART, "cut off"),
        (KIND, b"no multipart at all", "not multipart"),
        (KIND, b"--x\r\n\r\nbody\r\n--x--\r\n", "has no name"),
        (KIND, b"--x\r\nno colon\r\n\r\n--x--", "not multipart"),
        (KIND, b"--x\r\na: " + b"b" * 20_000 + b"\r\n\r\n--x--", "not multipart|headers of a part"),
        ("multipart/form-data; boundary=" + "x" * 300, PART, "not multipart"),
    ],
)
def test_what_is_none_is_told(kind: str, body: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_multipart(kind, body, 4)
