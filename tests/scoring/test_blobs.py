"""Blobs: what safetensors writes is read, what safetensors reads is written, and a header that lies is told so."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import safetensors.torch
import torch

from dina_lrm.errors import DataError, InputError, ShapeError, ValueRangeError
from dina_lrm.scoring.blobs import MAX_HEADER_BYTES, pack, require_finite, unpack


def tensors() -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(2, 16, 4, 4),
        "prompt_embeds": torch.randn(2, 3, 5).half(),
        "pooled_prompt_embeds": torch.randn(2, 7).bfloat16(),
        "prompt_mask": torch.tensor([[True, False, True]] * 2),
        "seeds": torch.tensor([0, 2**62]),
        "image.0": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(0.5),
    }


def written(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_is_packed_comes_back() -> None:
    blob = unpack(pack(tensors(), {"request": "{}"}))
    assert blob.metadata == {"request": "{}"}
    assert blob.tensors.keys() == tensors().keys()
    given = tensors()
    blob = unpack(pack(given))
    assert all(torch.equal(blob.tensors[name], given[name]) for name in given)
    assert all(blob.tensors[name].dtype == given[name].dtype for name in given)


def test_safetensors_reads_what_is_packed_and_writes_what_is_unpacked() -> None:
    given = tensors()
    read = safetensors.torch.load(pack(given, {"request": "x"}))
    assert all(torch.equal(read[name], given[name]) for name in given)
    blob = unpack(safetensors.torch.save(given, {"a": "b"}))
    assert blob.metadata == {"a": "b"}
    assert all(torch.equal(blob.tensors[name], given[name]) for name in given)


def test_views_and_gradients_are_packed_as_they_look() -> None:
    given = torch.randn(4, 3, requires_grad=True).T[:, 1:]
    assert torch.equal(unpack(pack({"a": given})).tensors["a"], given)


def test_a_bytearray_is_read_in_place() -> None:
    body = bytearray(pack({"a": torch.zeros(1_000_000)}))
    tracemalloc.start()
    found = unpack(body).tensors["a"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    body[-4:] = torch.ones(1).numpy().tobytes()
    assert found[-1] == 1


def test_numbers_that_are_not_aligned_are_read_all_the_same() -> None:
    header = {"a": entry([1], [0, 2], "F16"), "b": entry([2], [2, 10])}
    for spaces in range(8):
        text = json.dumps(header).encode() + b" " * spaces
        values = torch.tensor([0.25, -3.0])
        body = written(text, b"\x00\x3c" + values.numpy().tobytes())
        assert torch.equal(unpack(body).tensors["b"], values)


def test_other_dtypes_are_not_packed() -> None:
    with pytest.raises(ShapeError, match="a is torch.float64"):
        pack({"a": torch.zeros(1, dtype=torch.float64)})


LIES = {
    "empty": b"",
    "short": b"1234567",
    "not a blob": b"<html><body>not found</body></html>",
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "header beyond limit": written(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "truncated header": (50).to_bytes(8, "little") + b"{}",
    "no JSON": written(b"{latents}"),
    "no UTF-8": written(b'{"\xff": 1}'),
    "a list": written([]),
    "half a character": written(b'{"\\ud800": {}}'),
    "half a character as a value": written(b'{"__metadata__": {"a": "\\udfff"}}'),
    "deep": written(b"[" * 100_000),
    "nan": written(b'{"a": NaN}'),
    "many digits": written(b'{"a": ' + b"9" * 10_000 + b"}"),
    "twice": written(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "no entry": written({"a": 5}),
    "missing field": written({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "further field": written({"a": entry([1], [0, 4]) | {"x": 1}}, bytes(4)),
    "dtype": written({"a": entry([1], [0, 8], "F64")}, bytes(8)),
    "dtype is no text": written({"a": entry([1], [0, 8], [])}, bytes(8)),
    "negative side": written({"a": entry([-1], [0, 4])}, bytes(4)),
    "two negative sides": written({"a": entry([-1, -1], [0, 4])}, bytes(4)),
    "no side": written({"a": entry([0], [0, 0])}),
    "true side": written({"a": entry([True], [0, 4])}, bytes(4)),
    "float side": written({"a": entry([1.0], [0, 4])}, bytes(4)),
    "huge sides": written({"a": entry([2**31 - 1] * 8, [0, 4])}, bytes(4)),
    "huge offsets": written({"a": entry([1], [10**400, 10**400 + 4])}, bytes(4)),
    "rank": written({"a": entry([1] * 9, [0, 4])}, bytes(4)),
    "three offsets": written({"a": entry([1], [0, 4, 8])}, bytes(4)),
    "backwards": written({"a": entry([1], [4, 0])}, bytes(4)),
    "span": written({"a": entry([2], [0, 4])}, bytes(4)),
    "beyond the end": written({"a": entry([2], [0, 8])}, bytes(7)),
    "gap": written({"a": entry([1], [4, 8])}, bytes(8)),
    "overlap": written({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, bytes(8)),
    "left over": written({"a": entry([1], [0, 4])}, bytes(5)),
    "bool of two": written({"a": entry([1], [0, 1], "BOOL")}, b"\x02"),
    "metadata": written({"__metadata__": {"a": 1}}),
    "metadata list": written({"__metadata__": []}),
    "many": written({f"t{i}": entry([1], [i, i + 1], "U8") for i in range(2000)}, bytes(2000)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_told_in_one_sentence(name: str) -> None:
    with pytest.raises((DataError, ShapeError)) as caught:
        unpack(LIES[name])
    message = str(caught.value)
    assert len(message) < 300 and "\n" not in message


def test_every_cut_of_a_blob_is_told() -> None:
    body = pack({"a": torch.randn(3), "b": torch.randn(2)})
    for end in range(len(body)):
        with pytest.raises(InputError):
            unpack(body[:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, bad: float) -> None:
    values = torch.zeros(3, 4, dtype=dtype)
    values[0] = torch.finfo(dtype).max
    values[1] = torch.finfo(dtype).min
    require_finite("a", values)
    values[2, 1] = bad
    with pytest.raises(ValueRangeError, match=r"a has a value that is not finite at index \[2, 1\]"):
        require_finite("a", values)


def test_whole_numbers_are_finite() -> None:
    require_finite("seeds", torch.tensor([2**63 - 1]))
