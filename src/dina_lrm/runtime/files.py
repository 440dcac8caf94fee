"""Files that are whole or not there: written under another name beside their place, then renamed.

The staging name starts with a dot and ends in `.partial`. What a killed process left there is overwritten by the next
writer, so each path has one writer at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def _beside(path: Path, suffix: str) -> Path:
    return path.parent / f".{path.name}.{suffix}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to; on leaving it replaces `path`, and an error leaves `path` as it was.

    Args:
        path: of the finished file; missing folders are made.

    Yields:
        The staging file, open for writing bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(path, "partial")
    try:
        with staged.open("wb") as file:
            yield file
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill; on leaving it replaces `path`, and an error leaves `path` as it was.

    Args:
        path: of the finished folder; missing parents are made.

    Yields:
        The staging folder, beside `path`.
    """
    path = Path(path).absolute()
    staged, replaced = _beside(path, "partial"), _beside(path, "replaced")
    restore_folder(path)
    _remove(staged)
    staged.mkdir(parents=True)
    try:
        yield staged
        _let_others_read(staged)
        # A full folder cannot be renamed over: the old one steps aside first.
        _remove(replaced)
        if path.exists():
            path.rename(replaced)
        try:
            staged.rename(path)
        except OSError:
            restore_folder(path)
            raise
        if replaced.exists():
            # Under a third name: a half-removed folder is never taken for one that stepped aside.
            doomed = _beside(path, "doomed")
            _remove(doomed)
            replaced.rename(doomed)
            _remove(doomed)
    finally:
        _remove(staged)


def _let_others_read(folder: Path) -> None:
    """Some libraries write files that only their owner may read; these get the mode that any new file has."""
    fresh = folder / ".mode"
    fresh.touch()
    mode = fresh.stat().st_mode
    fresh.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def restore_folder(path: str | Path) -> None:
    """Put a folder back that had stepped aside for a writer that was killed before its own took the place."""
    path = Path(path).absolute()
    replaced = _beside(path, "replaced")
    if replaced.exists() and not path.exists():
        replaced.rename(path)


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
