"""Named tensors in one run of bytes: the safetensors format, written and read without trust in who wrote it.

A blob is eight bytes of header length (little endian), a JSON header, and the tensors' bytes without a gap:

    {"latents": {"dtype": "F32", "shape": [1, 16, 64, 64], "data_offsets": [0, 262144]}, "__metadata__": {"request": "{}"}}

Whatever the header says is held against the bytes that are there before a tensor is made, and the tensors are views of those
bytes: reading allocates no more than the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dina_lrm.errors import DataError, ShapeError, ValueRangeError

__all__ = ["DTYPES", "MAX_HEADER_BYTES", "Blob", "pack", "require_finite", "unpack"]

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}  # all bits of the exponent set: infinity or NaN
MAX_HEADER_BYTES = 256 * 1024
MAX_TENSORS = 1024
MAX_RANK = 8
LENGTH_BYTES = 8
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Blob:
    """What a blob holds.

    Attributes:
        tensors: by name; views of the blob's bytes where those are aligned.
        metadata: texts by name.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write tensors and texts into one blob, which any safetensors reader opens.

    Args:
        tensors: by name, each of a dtype in `DTYPES`; on any device, with or without a gradient.
        metadata: texts by name.

    Returns:
        The blob.

    Raises:
        ShapeError: a tensor of another dtype.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    parts: list[memoryview] = []
    start = 0
    # Wide numbers first: each tensor then begins where its own dtype is aligned.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in NAMES:
            raise ShapeError(f"{name} is {tensor.dtype}; a blob takes {', '.join(map(str, NAMES))}")
        # Flat first: a scalar has no last axis to be viewed along.
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + data.nbytes],
        }
        parts.append(data.data)
        start += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *parts])


def unpack(body: bytes | bytearray) -> Blob:
    """Read a blob of unknown origin.

    A `bytearray` is read in place and must not change afterwards; `bytes` are copied once, since torch has no tensors that
    cannot be written to.

    Args:
        body: the whole blob.

    Returns:
        What it holds; every dtype is one of `DTYPES`, every side 1 or more.

    Raises:
        DataError: not a safetensors blob, truncated, or a header that does not fit the bytes.
        ShapeError: a dtype that is not accepted, or a shape that is none.
    """
    writable = body if isinstance(body, bytearray) else bytearray(body)
    header, start = _header(writable)
    metadata = _metadata(header.pop(METADATA, {}))
    if len(header) > MAX_TENSORS:
        raise DataError(f"a blob holds at most {MAX_TENSORS} tensors, got {len(header)}")
    entries = sorted((_Entry.read(name, facts) for name, facts in header.items()), key=lambda entry: entry.begin)
    _check_layout(entries, len(writable) - start)
    tensors = {entry.name: _view(writable, start, entry) for entry in entries}
    return Blob(tensors, metadata)


def require_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, about twenty times faster than torch tells them.

    Args:
        name: for the message.
        values: on the CPU, of a dtype in `DTYPES`; whole numbers always pass.

    Raises:
        ValueRangeError: naming the first bad position.
    """
    # numpy, because a server checks megabytes a request on threads that must not each start torch's pool of threads.
    if values.dtype == torch.float32:
        finite = np.isfinite(values.numpy())
    elif values.dtype in EXPONENTS:
        bits = values.view(torch.int16).numpy()
        finite = (bits & EXPONENTS[values.dtype]) != EXPONENTS[values.dtype]
    else:
        return
    if not finite.all():
        bad = np.argwhere(~finite)[0].tolist()
        raise ValueRangeError(f"{name} has a value that is not finite at index {bad}; every element must be finite")


@dataclass(frozen=True)
class _Entry:
    """What the header says of one tensor: name, dtype, shape, first byte and the byte after the last."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @staticmethod
    def read(name: str, facts: object) -> _Entry:
        """Check one entry of the header.

        Args:
            name: of the tensor.
            facts: what the header says of it.

        Returns:
            The entry; its offsets span as many bytes as its shape takes.
        """
        if not isinstance(facts, dict) or set(facts) != FIELDS:
            raise DataError(
                f"tensor {name!r:.60} of the blob must have dtype, shape and data_offsets, and nothing else"
            )
        dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ShapeError(f"tensor {name!r:.60} has dtype {dtype!r:.40}; accepted are {', '.join(DTYPES)}")
        if not _are_counts(shape) or len(shape) > MAX_RANK or not all(1 <= side < 2**31 for side in shape):
            raise ShapeError(
                f"tensor {name!r:.60} has shape {shape!r:.60}; a shape is at most {MAX_RANK} whole numbers of 1 or more"
            )
        if not _are_counts(offsets) or len(offsets) != 2:
            raise DataError(f"tensor {name!r:.60} has data_offsets {offsets!r:.60}; they are two whole numbers")
        begin, end = offsets
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        if end - begin != needed:
            raise DataError(
                f"tensor {name!r:.60} of {dtype} {shape} takes {needed} bytes, its data_offsets span {end - begin}"
            )
        return _Entry(name, DTYPES[dtype], tuple(shape), begin, end)


def _header(body: bytearray) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors' bytes begin."""
    if len(body) < LENGTH_BYTES:
        raise DataError(
            f"the body is not a safetensors blob: it has {len(body)} bytes, the header length alone takes 8"
        )
    length = int.from_bytes(body[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise DataError(
            f"the body is not a safetensors blob: its header would take {length} bytes, at most {MAX_HEADER_BYTES} are read"
        )
    start = LENGTH_BYTES + length
    if start > len(body):
        raise DataError(f"the blob is truncated: its header takes {length} bytes, {len(body) - LENGTH_BYTES} are there")
    try:
        header = json.loads(
            body[LENGTH_BYTES:start].decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"the blob's header is not JSON: {error!s:.120}") from error
    if not isinstance(header, dict):
        raise DataError(f"the blob's header must be a JSON object, got {type(header).__name__}")
    return header, start


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that stands twice means one thing to one reader and another to the next; so does half a character."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    for text in (*found, *found.values()):
        if isinstance(text, str):
            text.encode()
    return found


def _no_number(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


def _metadata(values: object) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
        raise DataError(f"the blob's {METADATA} must map texts to texts, got {values!r:.80}")
    return values


def _are_counts(values: object) -> bool:
    # `type` and not isinstance: true and false are no counts.
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(entries: list[_Entry], size: int) -> None:
    """Tensors stand one behind the other, without gap or overlap, from the first byte to the last."""
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            raise DataError(
                f"tensor {entry.name!r:.60} begins at byte {entry.begin} of the data, it must begin at {expected}"
            )
        expected = entry.end
        if expected > size:
            raise DataError(
                f"the blob is truncated: tensor {entry.name!r:.60} ends at byte {expected} of the data, {size} are there"
            )
    if expected != size:
        raise DataError(f"the blob holds {size - expected} bytes after its last tensor")


def _view(body: bytearray, start: int, entry: _Entry) -> Tensor:
    raw = torch.frombuffer(body, dtype=torch.uint8, count=entry.end - entry.begin, offset=start + entry.begin)
    if entry.dtype == torch.bool and int(raw.max()) > 1:
        raise DataError(f"tensor {entry.name!r:.60} is BOOL and has a byte that is neither 0 nor 1")
    if raw.data_ptr() % entry.dtype.itemsize or raw.storage_offset() % entry.dtype.itemsize:
        raw = raw.clone()
    return raw.view(entry.dtype).view(entry.shape)
