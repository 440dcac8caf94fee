"""Prompts and pictures to what a backbone reads, each encoded once."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.errors import DataError, PromptCutWarning, ValueRangeError
from dina_lrm.images import open_image, to_square_pixels
from dina_lrm.runtime.files import atomic_write
from dina_lrm.types import Conditioning

__all__ = ["PromptTable", "encode_images", "encode_prompts_once"]


@dataclass(frozen=True)
class PromptTable(Mapping[str, Conditioning]):
    """Encoded prompts by their text; on disk they are mapped, so a large table costs no memory.

    Attributes:
        rows: row of each text.
        conditioning: of all texts, batch u.
    """

    rows: Mapping[str, int]
    conditioning: Conditioning

    def __getitem__(self, prompt: str) -> Conditioning:
        """Of one prompt, batch 1."""
        row = self.rows[prompt]
        return self.conditioning[row : row + 1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def lookup(self, prompts: Sequence[str]) -> Conditioning:
        """Of several prompts, in their order, batch `len(prompts)`.

        Raises:
            DataError: a prompt that was not encoded.
        """
        missing = [prompt for prompt in prompts if prompt not in self.rows]
        if missing:
            raise DataError(f"prompt {missing[0]!r} was not encoded; encode it with the others first")
        return self.conditioning[torch.tensor([self.rows[prompt] for prompt in prompts])]


def encode_prompts_once(
    backbone: Backbone, prompts: Sequence[str], cache_dir: Path | str | None = None, batch_size: int = 64
) -> PromptTable:
    """Encode each text once, and never again while the cache lives.

    Args:
        backbone: whose text encoders are asked; untouched if the cache has the answer.
        prompts: in any order, repeats allowed.
        cache_dir: where tables are kept, under a hash of the texts, the base, its text encoders' files and the length; None keeps nothing.
        batch_size: texts a forward.

    Returns:
        The table, on the CPU.

    Raises:
        ValueRangeError: no prompts.
    """
    texts = sorted(set(prompts))
    if not texts:
        raise ValueRangeError("there must be at least one prompt to encode, got none")
    rows = {text: row for row, text in enumerate(texts)}
    if cache_dir is None:
        return PromptTable(rows, _encode_texts(backbone, texts, batch_size))
    path = Path(cache_dir) / f"prompts-{_cache_key(backbone, texts)}.safetensors"
    if _read_cached(path) is None:
        encoded = _encode_texts(backbone, texts, batch_size)
        with atomic_write(path) as file:
            tensors = {name: tensor for name, tensor in vars(encoded).items() if tensor is not None}
            file.write(save(tensors, metadata={"prompts": json.dumps(texts)}))
    cached = _read_cached(path)
    assert cached is not None
    return PromptTable(rows, cached)


def _encode_texts(backbone: Backbone, texts: Sequence[str], batch_size: int) -> Conditioning:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptCutWarning)
        parts = [
            backbone.encode_prompts(texts[start : start + batch_size]).to("cpu")
            for start in range(0, len(texts), batch_size)
        ]
    _tell(caught, len(texts))
    return Conditioning.cat(parts).map(lambda t: t.detach().contiguous())


def _tell(caught: Sequence[warnings.WarningMessage], count: int) -> None:
    """Many prompts that are too long make one warning."""
    cut = [one for one in caught if issubclass(one.category, PromptCutWarning)]
    for one in caught:
        if one not in cut:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if cut:
        told = f"{len(cut)} of {count} prompts are longer than the model reads; the first: {cut[0].message}"
        warnings.warn(told, PromptCutWarning, stacklevel=3)


def _cache_key(backbone: Backbone, texts: Sequence[str]) -> str:
    told = {
        "texts": texts,
        "base": backbone.base,
        "revision": backbone.revision,
        "files": _text_files(Path(backbone.base)),
        "signature": backbone.signature(),
        "max_sequence_length": backbone.config.max_sequence_length,
        "dtype": str(backbone.dtype),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _text_files(base: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of what encodes text in a local base: other files there, other embeddings."""
    files = [path for part in ("text_encoder*", "tokenizer*") for path in base.glob(f"{part}/*") if path.is_file()]
    return [(str(path.relative_to(base)), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]


def _read_cached(path: Path) -> Conditioning | None:
    """None where there is no table, or one that cannot be read: a cache is made again, not mourned."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Conditioning(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError):
        return None


def encode_images(
    backbone: Backbone, paths: Sequence[Path | str], side: int | None = None, batch_size: int = 16
) -> Tensor:
    """Pictures on disk to latents.

    Args:
        backbone: whose VAE encodes.
        paths: of the pictures.
        side: of the square they are cut and resized to; None takes the base's native size.
        batch_size: pictures a forward.

    Returns:
        `[n c h w]` on the CPU.

    Raises:
        ImageError: a picture that cannot be read.
        ValueRangeError: no pictures.
    """
    if not paths:
        raise ValueRangeError("there must be at least one picture to encode, got none")
    side = side or backbone.native_size
    parts: list[Tensor] = []
    for start in range(0, len(paths), batch_size):
        pixels = [to_square_pixels(open_image(path), side) for path in paths[start : start + batch_size]]
        parts.append(backbone.encode_images(torch.stack(pixels)).cpu())
    return torch.cat(parts)
