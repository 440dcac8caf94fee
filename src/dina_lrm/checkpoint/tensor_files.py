"""Files of tensors: safetensors, and pickles of which nothing but tensors is read."""

from __future__ import annotations

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dina_lrm.errors import CheckpointError

Tensors = Mapping[str, Tensor]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: missing, truncated or of another format.
    """
    _refuse_missing(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy it again") from error


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file where they lie on disk, each a storage of its own: a file of gigabytes takes no memory.

    Raises:
        CheckpointError: missing, truncated, of another format, or with a dtype that no network of ours has.
    """
    _refuse_missing(path)
    try:
        with safe_open(path, framework="pt"):  # refuses what is not whole
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy it again") from error
    header.pop("__metadata__", None)
    # One mapping for all: each keeps a file descriptor, and a network has more tensors than a process may have of these.
    content = np.memmap(path, np.uint8, mode="c")[8 + length :]
    return {name: _mapped(path, name, entry, content) for name, entry in header.items()}


def _mapped(path: Path, name: str, entry: dict[str, Any], content: Any) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} is {entry['dtype']}; read are {', '.join(DTYPES)}")
    first, last = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    if last == first:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(content[first:last]).view(dtype).reshape(shape)


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write safetensors, each tensor in its dtype; what lies on disk is copied from there piece by piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: _own_storage(value.detach().cpu()) for name, value in tensors.items()}, path)


def _own_storage(value: Tensor) -> Tensor:
    """Safetensors takes no views: two names may not lie in one storage."""
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value if whole else value.contiguous().clone()


def read_pickled_tensors(path: Path, large: bool = False) -> dict[str, Tensor]:
    """Tensors by name of a file of `torch.save`, never executing anything that it holds.

    Args:
        path: of the file.
        large: leave the tensors on disk until they are used.

    Raises:
        CheckpointError: missing, truncated, a pickle with more than tensors in it, or not a plain dictionary of them.
    """
    _refuse_missing(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            mmap = large and zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # what a pickle that was cut or made up raises is anybody's guess
        raise CheckpointError(f"{path} cannot be read as tensors only: {_reason(path, error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(
                f"{path} must hold a plain state dict of tensors; {name!r} is a {type(value).__name__}. "
                "Save the state dict itself, without a wrapper"
            )
    return state


def _reason(path: Path, error: Exception) -> str:
    # torch's own advice, to load without the safeguard, is the one thing not to pass on.
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    code = named[1] if named else _code_in(path)
    if code is not None:
        return f"it holds code ({code}), which is not executed; ask its publisher for a state dict of tensors only"
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    ours = "weights" in first.lower() or not isinstance(error, OSError | RuntimeError)
    return "it is no file of torch.save, or is cut; copy it again" if ours else first


def _code_in(path: Path) -> str | None:
    """The first thing that a bare pickle would call, told without calling anything."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for op, argument, _ in pickletools.genops(file):
                if op.name == "GLOBAL":
                    texts = str(argument).split(" ")
                elif "UNICODE" in op.name:
                    texts.append(str(argument))
                if op.name in ("GLOBAL", "STACK_GLOBAL") and texts[-2].partition(".")[0] not in (
                    "torch",
                    "collections",
                ):
                    return ".".join(texts[-2:])
    except (ValueError, IndexError, OSError):
        pass
    return None


def check_finite(what: str, tensors: Tensors) -> None:
    """Refuse values that are no numbers.

    Raises:
        CheckpointError: naming the first tensor.
    """
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{what}: tensor {name!r} has values that are not finite")


def dtypes_of(tensors: Iterable[Tensor]) -> list[str]:
    """Names of the dtypes, each once."""
    return sorted({str(value.dtype).removeprefix("torch.") for value in tensors})


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is incomplete: {path.name} is missing")
