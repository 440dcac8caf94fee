"""A request's bytes as records: JSON, multipart or a blob, whichever the content type says. Nothing here knows a model.

Status 400 means that the bytes are not what their content type says, or, for a blob, anything wrong in it; 422 that they
were understood and a value cannot be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dina_lrm.errors import DataError, InputError, ShapeError, ValueRangeError
from dina_lrm.scoring.wire import BLOB_TYPE, JSON_TYPE, REQUEST, require_finite, unpack
from dina_lrm.serve.multipart import read_multipart
from dina_lrm.serve.pictures import decode_base64
from dina_lrm.serve.refusals import Refusal, refusal_of

__all__ = [
    "COMPARED_TENSORS",
    "MULTIPART_TYPE",
    "SCORED_TENSORS",
    "Asked",
    "LatentScores",
    "media_type",
    "read_asked",
    "read_json",
    "read_latent_scores",
]

MULTIPART_TYPE = "multipart/form-data"
IMAGES_PART = "images"
IMAGE_TENSOR = "image."
LARGEST = 1e6  # of a number in a tensor; hidden states of language models reach 1e5
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
RANKS = {
    "latents": (4, 5),
    "noised_latents": (4, 5),
    "noise": (4, 5),
    "pixels": (4,),
    "sigma": (1,),
    "prompt_embeds": (3,),
    "pooled_prompt_embeds": (2,),
    "prompt_mask": (2,),
    "u": (1,),
    "seeds": (1,),
}
DTYPES_OF = {"prompt_mask": (torch.bool,), "seeds": (torch.int64,)}
COMPARED_TENSORS = ("latents", "pixels", "prompt_embeds", "pooled_prompt_embeds", "prompt_mask")
SCORED_TENSORS = (*COMPARED_TENSORS, "noise", "noised_latents", "sigma")
PROTOCOL_TENSORS = ("latents", "prompt_embeds", "pooled_prompt_embeds", "u")

MOST_COMMAS = 20_000
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Asked(Generic[R]):
    """A request in our terms.

    Attributes:
        request: its words.
        files: of pictures.
        tensors: of a blob, checked each by itself: taken here, of a fitting dtype and rank, finite; floats are float32.
        input_status: of what turns out to be wrong later.
    """

    request: R
    files: tuple[bytes | bytearray, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    input_status: int = 422


@dataclass(frozen=True)
class LatentScores:
    """What `POST /v1/score` asks: protocol version 1.

    Attributes:
        latents: clean `[b c h w]`.
        prompt_embeds: `[b l e]`.
        pooled_prompt_embeds: `[b p]`.
        u: noise level of each sample.
        seeds: of each sample's noise; None lets the server draw them.
    """

    latents: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    u: tuple[float, ...]
    seeds: tuple[int, ...] | None


def media_type(content_type: str) -> str:
    """Without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def read_asked(
    kind: type[R], content_type: str, body: bytearray, max_files: int, takes: Sequence[str] = ()
) -> Asked[R]:
    """Read a request of any of the three content types.

    Args:
        kind: of its words.
        content_type: the header.
        body: all of it; a blob's tensors are views of it.
        max_files: pictures in one request.
        takes: names of the tensors that have a meaning here.

    Returns:
        The request.

    Raises:
        Refusal: it cannot be read, with its status.
    """
    match media_type(content_type):
        case "application/json":
            request = read_json(kind, body)
            texts: tuple[str, ...] = getattr(request, "images", ())
            if len(texts) > max_files:
                raise Refusal(422, "bad_input", f"a request holds at most {max_files} images, got {len(texts)}")
            return Asked(request, tuple(_told(422, decode_base64, text, place) for place, text in enumerate(texts)))
        case "multipart/form-data":
            return _told(400, _read_form, kind, content_type, body, max_files)
        case "application/octet-stream":
            return _told(400, _read_blob, kind, body, max_files, takes)
    accepted = f"{JSON_TYPE}, {MULTIPART_TYPE} or {BLOB_TYPE}"
    raise Refusal(415, "wrong_content_type", f"content type must be {accepted}, got {content_type!r:.80}")


def read_json(kind: type[R], text: str | bytes | bytearray, schema_status: int = 422) -> R:
    """JSON as a record.

    Args:
        kind: of record.
        text: the JSON.
        schema_status: of JSON that is no such record.

    Returns:
        The record.

    Raises:
        Refusal: 400 for what is no JSON, else as told.
    """
    data = text.encode() if isinstance(text, str) else text
    if data.count(b",") > MOST_COMMAS:
        # Before it is parsed: each value that is wrong would become a record of its own, a thousand times its size.
        raise Refusal(schema_status, "bad_input", f"the request's JSON holds more than {MOST_COMMAS} values")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first, count = error.errors(include_url=False, include_input=False)[0], error.error_count()
        if first["type"] == "json_invalid":
            raise Refusal(400, "bad_json", f"the request is not JSON: {first['ctx']['error']}") from error
        place = ".".join(str(part) for part in first["loc"] if part not in ("constrained-int", "constrained-float"))
        message = f"{place or 'the request'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            message = f"{place} is not known here; a request may hold {', '.join(kind.model_fields)}"
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise Refusal(schema_status, "bad_input", f"{message}{more}") from error


def read_latent_scores(body: bytearray) -> LatentScores:
    """The blob of protocol version 1.

    Raises:
        InputError: whatever is wrong with it.
    """
    tensors = _checked(unpack(body).tensors, (*PROTOCOL_TENSORS, "seeds"))
    missing = [name for name in PROTOCOL_TENSORS if name not in tensors]
    if missing:
        told = f"it must hold {', '.join(PROTOCOL_TENSORS)}, and may hold seeds"
        raise DataError(f"the blob lacks {', '.join(missing)}; {told}")
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(sizes.values())) != 1:
        raise ShapeError(f"all tensors must have one batch size, got {sizes}")
    u = tensors["u"].tolist()
    if not all(0 <= one <= 1 for one in u):
        raise ValueRangeError(f"u must lie in [0, 1], got {next(one for one in u if not 0 <= one <= 1):g}")
    seeds = tensors["seeds"].tolist() if "seeds" in tensors else None
    if seeds is not None and min(seeds) < 0:
        raise ValueRangeError(f"seeds must be 0 or more, got {min(seeds)}")
    return LatentScores(
        tensors["latents"],
        tensors["prompt_embeds"],
        tensors["pooled_prompt_embeds"],
        tuple(u),
        None if seeds is None else tuple(seeds),
    )


def _told(status: int, read: Callable[..., T], *arguments: Any) -> T:
    """Call a reader; wrong input becomes a refusal of the given status."""
    try:
        return read(*arguments)
    except InputError as error:
        raise refusal_of(error, status) from error


def _read_form(kind: type[R], content_type: str, body: bytearray, max_files: int) -> Asked[R]:
    parts = read_multipart(content_type, body, max_files + 1)
    words = [part for part in parts if part.name == REQUEST]
    files = [part for part in parts if part.name == IMAGES_PART]
    if len(words) != 1 or len(words) + len(files) != len(parts):
        names = ", ".join(dict.fromkeys(f"{part.name!r:.40}" for part in parts))
        raise DataError(f"a form has one part named request (JSON) and parts named images (files), got {names:.200}")
    request = read_json(kind, bytes(words[0].body))
    if getattr(request, "images", ()):
        raise Refusal(422, "bad_input", "images: in a form pictures travel as parts named images, not inside the JSON")
    return Asked(request, tuple(part.body for part in files))


def _read_blob(kind: type[R], body: bytearray, max_files: int, takes: Sequence[str]) -> Asked[R]:
    blob = unpack(body)
    request = read_json(kind, blob.metadata.get(REQUEST, "{}"), schema_status=400)
    if getattr(request, "images", ()):
        raise DataError("images: in a blob pictures travel as tensors image.0, image.1, ..., not inside the JSON")
    numbered = {name: tensor for name, tensor in blob.tensors.items() if name.startswith(IMAGE_TENSOR)}
    names = [f"{IMAGE_TENSOR}{place}" for place in range(len(numbered))]
    if set(names) != set(numbered):
        raise DataError(f"pictures must be named image.0, image.1, ... without a gap, got {sorted(numbered)!s:.120}")
    if len(numbered) > max_files:
        raise DataError(f"a request holds at most {max_files} images, got {len(numbered)}")
    if any(tensor.dtype != torch.uint8 or tensor.ndim != 1 for tensor in numbered.values()):
        raise ShapeError("a picture in a blob is the bytes of its file: U8 [n]")
    files = tuple(numbered[name].numpy().tobytes() for name in names)
    others = {name: tensor for name, tensor in blob.tensors.items() if name not in numbered}
    return Asked(request, files, _checked(others, takes, "image.0, image.1, ..."), 400)


def _checked(tensors: Mapping[str, Tensor], takes: Sequence[str], *more: str) -> dict[str, Tensor]:
    """Each tensor by itself: its name, dtype, rank and values; floats as float32."""
    found = {}
    for name, tensor in tensors.items():
        if name not in takes:
            told = ", ".join((*takes, *more))
            raise DataError(f"the blob holds {name!r:.60}, which would not be read: this route takes {told}")
        if tensor.dtype not in DTYPES_OF.get(name, FLOATS):
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES_OF.get(name, FLOATS))
            raise ShapeError(f"{name} must be {accepted}, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.ndim not in RANKS[name]:
            ranks = " or ".join(map(str, RANKS[name]))
            raise ShapeError(f"{name} must have {ranks} axes, got {list(tensor.shape)}")
        # Numbers that came short are widened here, so that an answer is that of the same numbers in float32.
        found[name] = tensor.float() if tensor.dtype in FLOATS else tensor
        if tensor.dtype in FLOATS:
            _require_sane(name, found[name])
    return found


def _require_sane(name: str, values: Tensor) -> None:
    """Refuse NaN, infinity, and what no encoder makes: a network's sums would overflow, and that is no fault of its own."""
    # Least and largest carry a NaN along; numpy, for torch would start its threads.
    numbers = values.numpy()
    low, high = float(numbers.min()), float(numbers.max())
    if not (low >= -LARGEST and high <= LARGEST):
        require_finite(name, values)
        raise ValueRangeError(f"{name} must lie within {LARGEST:g} of zero, got {low:g} to {high:g}")
