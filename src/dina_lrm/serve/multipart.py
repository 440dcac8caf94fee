"""Multipart bodies (RFC 7578), read from memory: no temporary files, no more parts than were asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dina_lrm.errors import DataError

__all__ = ["Part", "read_multipart"]

MAX_PART_HEADER_BYTES = 8192


@dataclass
class Part:
    """One part of a body.

    Attributes:
        name: of the form's field.
        body: its bytes.
    """

    name: str = ""
    body: bytearray = field(default_factory=bytearray)


def read_multipart(content_type: str, body: bytes | bytearray, max_parts: int) -> list[Part]:
    """The parts of a body, in order.

    Args:
        content_type: the request's header, with the boundary.
        body: all of it.
        max_parts: beyond it the body is refused.

    Returns:
        One or more parts.

    Raises:
        DataError: not multipart, cut off, too many parts, or a part without a name.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise DataError("the content type names no boundary: write multipart/form-data; boundary=...")
    reader = _Reader(max_parts)
    try:
        parser = MultipartParser(boundary, cast(Any, reader.callbacks()))
        parser.write(cast(bytes, body))  # it slices and searches, which a bytearray does without a copy
        parser.finalize()
    except FormParserError as error:
        raise DataError(f"the body is not multipart/form-data: {error!s:.120}") from error
    if not reader.ended:
        raise DataError("the multipart body is cut off: its closing boundary is missing")
    return reader.parts


class _Reader:
    """What the parser calls; it names only where in its buffer things are."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._header, self._value = bytearray(), bytearray()
        self._header_bytes = 0

    def callbacks(self) -> dict[str, Any]:
        """By the names that the parser knows."""
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._field,
            "on_header_value": self._field_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise DataError(f"the multipart body has more than {self._max_parts} parts")
        self.parts.append(Part())
        self._header_bytes = 0

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].body += memoryview(data)[start:end]

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header += data[start:end]

    def _field_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise DataError(f"the headers of a part take more than {MAX_PART_HEADER_BYTES} bytes")

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            name = parse_options_header(bytes(self._value))[1].get(b"name", b"")
            self.parts[-1].name = name.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        if not self.parts[-1].name:
            raise DataError("a part of the multipart body has no name")

    def _end(self) -> None:
        self.ended = True
