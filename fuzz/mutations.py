"""Ways to spoil a valid input: by its structure where it has one, and byte by byte."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

LENGTHS = (0, 1, 7, 8, 9, 255, 256, 65535, 2**20, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 1.0000001, 1e-320, 1e308, -1e308, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3.4e38, -3.4e38, 1e7, 65504.0)
TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "é",
    "😀" * 20,
    "a" * 5000,
    "null",
    "../../etc/passwd",
    "%s%n",
    "__proto__",
    "\r\nx: y",
)
DTYPES = ("F32", "F16", "BF16", "I64", "U8", "BOOL", "F64", "I32", "F8_E4M3", "", "f32")
NAMES = (
    "latents",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "u",
    "seeds",
    "noise",
    "sigma",
    "pixels",
    "image.0",
    "image.01",
)
NAMES += ("noised_latents", "prompt_mask", "__metadata__", "")


class Mutator:
    """Draws mutations.

    Attributes:
        rng: whence.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def raw(self, data: bytes) -> bytes:
        """Some bytes flipped, cut, doubled or put in."""
        found = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 1, 2, 4, 16))):
            self.rng.choice((self._flip, self._insert, self._cut, self._double, self._overwrite, self._truncate))(found)
        return bytes(found)

    def blob(self, data: bytes) -> bytes:
        """A safetensors blob, spoiled in its header, its length or its numbers."""
        roll = self.rng.random()
        if roll < 0.55:
            return self._header(data)
        if roll < 0.65:
            return struct.pack("<Q", self.rng.choice((*LENGTHS, len(data), len(data) - 8))) + data[8:]
        if roll < 0.8:
            return self._numbers(data)
        if roll < 0.9:  # the text of the header alone
            size = int.from_bytes(data[:8], "little")
            text = self.raw(data[8 : 8 + size])
            return struct.pack("<Q", len(text)) + text + data[8 + size :]
        return self.raw(data)

    def json(self, value: Any) -> bytes:
        """JSON with a few values of another kind, keys lost or added; at times not JSON at all."""
        tree = copy.deepcopy(value)
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            tree = self._node(tree)
        text = json.dumps(tree).encode()
        return self.raw(text) if self.rng.random() < 0.15 else text

    def value(self, plain: bool = False) -> Any:
        """Anything that JSON, or Python's idea of it, can say; plain, it holds nothing else."""
        kind = self.rng.randrange(6 if plain else 8)
        if kind == 0:
            return self.rng.choice((None, True, False))
        if kind <= 2:
            return self.rng.choice(NUMBERS)
        if kind == 3:
            return self.rng.choice(FLOATS)
        if kind <= 5:
            return self.rng.choice(TEXTS)
        if kind == 6:
            return [self.value(plain=True) for _ in range(self.rng.choice((0, 1, 3, 100)))]
        deep: Any = {}
        for _ in range(self.rng.choice((0, 1, 3, 200))):
            deep = {self.rng.choice(TEXTS): deep} if self.rng.random() < 0.5 else [deep]
        return deep

    def form(self, parts: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
        """A multipart body: its content type and bytes, one or both of them spoiled."""
        boundary = self.rng.choice((b"x", b"----form", b"'a'", b"a b", b"-" * 70, b"x" * 300))
        parts = list(parts)
        for _ in range(self.rng.choice((0, 1, 2))):
            self.rng.choice((self._lose_part, self._repeat_part, self._rename_part, self._spoil_part))(parts)
        lines = []
        for name, body in parts:
            head = f'content-disposition: form-data; name="{name}"'.encode("utf-8", "replace")
            lines.append(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n")
        lines.append(b"--" + boundary + self.rng.choice((b"--\r\n", b"--", b"", b"\r\n")))
        body = b"".join(lines)
        kind = "multipart/form-data; boundary=" + boundary.decode()
        if self.rng.random() < 0.4:
            body = self.raw(body)
        if self.rng.random() < 0.1:
            kind = self.rng.choice(
                ("multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x")
            )
        return kind, body

    def text(self, value: str) -> str:
        """A header's value, one that HTTP can carry."""
        choices: tuple[Callable[[], str], ...] = (
            lambda: value,
            lambda: "",
            lambda: value.upper(),
            lambda: value + self.rng.choice((" ", ";", "; charset=utf-8", ",x", "\x7f")),
            lambda: self.rng.choice(("0", "-1", "1e9", "9" * 400, "\xe9", "a" * 3000, "null", "*/*")),
        )
        return self.rng.choice(choices)()

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)

    def _insert(self, data: bytearray) -> None:
        at = self.rng.randint(0, len(data))
        data[at:at] = self.rng.randbytes(self.rng.choice((1, 2, 8, 64)))

    def _cut(self, data: bytearray) -> None:
        at = self.rng.randint(0, len(data))
        del data[at : at + self.rng.choice((1, 2, 8, 64, 4096))]

    def _double(self, data: bytearray) -> None:
        at = self.rng.randint(0, len(data))
        data[at:at] = data[at : at + self.rng.choice((1, 4, 32, 256))]

    def _overwrite(self, data: bytearray) -> None:
        at = self.rng.randint(0, len(data))
        data[at : at + 8] = struct.pack("<Q", self.rng.choice(LENGTHS))

    def _truncate(self, data: bytearray) -> None:
        del data[self.rng.randint(0, len(data)) :]

    def _header(self, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            self._entry(header)
        text = json.dumps(header)
        if self.rng.random() < 0.1 and len(text) > 2:
            text = text[:-1] + "," + text[1:]  # every key twice
        raw = text.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw + data[8 + size :]

    def _entry(self, header: dict[str, Any]) -> None:
        names = [name for name in header if isinstance(header[name], dict) and "shape" in header[name]]
        kind = self.rng.randrange(8)
        if not names or kind == 0:
            header[self.rng.choice(NAMES)] = self.value()
            return
        name = self.rng.choice(names)
        entry = header[name]
        if kind == 1:
            header[self.rng.choice((*NAMES, *TEXTS))] = header.pop(name)
        elif kind == 2:
            entry["dtype"] = self.rng.choice(DTYPES)
        elif kind == 3:
            entry["shape"] = self.value() if self.rng.random() < 0.3 else self._shape(entry.get("shape"))
        elif kind == 4:
            entry["data_offsets"] = self._offsets(entry.get("data_offsets"))
        elif kind == 5:
            entry.pop(self.rng.choice(("dtype", "shape", "data_offsets")), None)
        elif kind == 6:
            del header[name]
        else:
            entry[self.rng.choice(("dtype", "shape", "data_offsets", "more"))] = self.value()

    def _shape(self, shape: Any) -> Any:
        if not isinstance(shape, list) or not shape:
            return [self.rng.choice(LENGTHS)]
        found = list(shape)
        kind = self.rng.randrange(5)
        if kind == 0:
            found[self.rng.randrange(len(found))] = self.rng.choice((*LENGTHS, -1, 1.5, True, "1"))
        elif kind == 1:
            self.rng.shuffle(found)
        elif kind == 2:
            found.insert(self.rng.randint(0, len(found)), 1)
        elif kind == 3:
            found.pop(self.rng.randrange(len(found)))
        else:
            found = [2**31 - 1] * self.rng.choice((2, 3, 8, 9))
        return found

    def _offsets(self, offsets: Any) -> Any:
        if not isinstance(offsets, list) or len(offsets) != 2 or self.rng.random() < 0.2:
            return self.value()
        found = list(offsets)
        kind = self.rng.randrange(4)
        if kind == 0:
            found.reverse()
        elif kind == 1:
            found[self.rng.randrange(2)] = self.rng.choice((*LENGTHS, -1))
        elif kind == 2 and all(type(one) is int for one in found):
            shift = self.rng.choice((-4, -1, 1, 4, 8))
            found = [one + shift for one in found]
        else:
            found.append(0)
        return found

    def _numbers(self, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        found = bytearray(data)
        for _ in range(self.rng.choice((1, 2, 8))):
            if len(found) > 12 + size:
                at = self.rng.randrange(8 + size, len(found) - 3)
                found[at : at + 4] = struct.pack("<f", self.rng.choice(FLOATS))
        return bytes(found)

    def _node(self, tree: Any) -> Any:
        """A value somewhere in a tree, replaced."""
        if isinstance(tree, dict) and tree and self.rng.random() < 0.85:
            key = self.rng.choice(list(tree))
            roll = self.rng.random()
            if roll < 0.1:
                del tree[key]
            elif roll < 0.2:
                tree[self.rng.choice(TEXTS)] = self.value()
            else:
                tree[key] = self._node(tree[key])
            return tree
        if isinstance(tree, list) and tree and self.rng.random() < 0.8:
            place = self.rng.randrange(len(tree))
            if self.rng.random() < 0.2:
                tree.insert(place, copy.deepcopy(tree[place]))
            else:
                tree[place] = self._node(tree[place])
            return tree
        if isinstance(tree, str) and tree and self.rng.random() < 0.5:
            return self.raw(tree.encode("utf-8", "surrogatepass")).decode("latin-1")
        return self.value()

    def _lose_part(self, parts: list[tuple[str, bytes]]) -> None:
        if parts:
            parts.pop(self.rng.randrange(len(parts)))

    def _repeat_part(self, parts: list[tuple[str, bytes]]) -> None:
        if parts:
            parts.extend([self.rng.choice(parts)] * self.rng.choice((1, 3, 300)))

    def _rename_part(self, parts: list[tuple[str, bytes]]) -> None:
        if parts:
            place = self.rng.randrange(len(parts))
            parts[place] = self.rng.choice((*TEXTS, "image", "Request")), parts[place][1]

    def _spoil_part(self, parts: list[tuple[str, bytes]]) -> None:
        if parts:
            place = self.rng.randrange(len(parts))
            parts[place] = parts[place][0], self.raw(parts[place][1])
