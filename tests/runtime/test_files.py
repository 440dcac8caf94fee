from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dina_lrm.runtime.files import atomic_folder, atomic_write, sha256_file


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_and_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    for names in (["a", "b"], ["c"]):
        with atomic_folder(path) as staged:
            for name in names:
                (staged / name).touch()
        assert sorted(p.name for p in path.iterdir()) == names
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    def fail() -> None:
        with atomic_folder(path) as staged:
            (staged / "new").touch()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    left = tmp_path / ".folder.partial"
    left.mkdir()
    (left / "torn").touch()
    with atomic_folder(tmp_path / "folder") as staged:
        assert list(staged.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    aside = tmp_path / ".folder.replaced"
    aside.mkdir()
    (aside / "old").touch()
    with pytest.raises(RuntimeError, match="again"), atomic_folder(tmp_path / "folder"):
        raise RuntimeError("again")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["old"]


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"dina" * 1000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"dina" * 1000).hexdigest()
