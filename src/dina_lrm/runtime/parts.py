"""Long work in parts that are kept: what a killed run has finished, the next one need not do again.

Parts lie in a folder of their own under a hash of all that they depend on, each written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dina_lrm.errors import DataError
from dina_lrm.runtime.files import atomic_write

__all__ = ["Parts"]

_STAMP = "parts.json"


@dataclass(frozen=True)
class Parts:
    """Finished parts of one piece of work, by number.

    Attributes:
        folder: where they lie; it holds nothing else.
    """

    folder: Path

    @staticmethod
    def open(folder: str | Path, depends_on: Mapping[str, Any]) -> Parts:
        """The parts of this work, of an earlier run or none; those of other work are thrown away.

        Args:
            folder: of the parts; made where there is none.
            depends_on: JSON values; a part that was made under others is of no use.

        Returns:
            The parts.

        Raises:
            DataError: the folder holds other things than parts.
        """
        folder = Path(folder)
        stamp = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
        stamped = folder / _STAMP
        if folder.is_dir() and any(folder.iterdir()) and not stamped.is_file():
            raise DataError(f"{folder} holds other things than parts of unfinished work; name another folder")
        if not (stamped.is_file() and stamped.read_text() == stamp):
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_write(stamped) as file:
                file.write(stamp.encode())
        return Parts(folder)

    def get(self, number: int) -> dict[str, Tensor] | None:
        """The tensors of a part; None if it is not there or not whole: then it is made again."""
        path = self._path(number)
        try:
            return load(path.read_bytes()) if path.is_file() else None
        except (SafetensorError, OSError):
            return None

    def put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a part."""
        with atomic_write(self._path(number)) as file:
            file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))

    def __contains__(self, number: int) -> bool:
        return self._path(number).is_file()

    def remove(self) -> None:
        """The work is done and lies elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"
