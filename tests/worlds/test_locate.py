"""Where the emoji world is looked for."""

import pytest

from dina_lrm.errors import InputError
from dina_lrm.worlds import locate


def make_world(root):
    for name in ("pipeline", "preferences"):
        (root / name).mkdir(parents=True)
    return root


def test_the_one_that_is_given(tmp_path):
    world = make_world(tmp_path / "mine")
    assert locate.emoji_root(world) == world
    assert locate.emoji_root(str(world)) == world


def test_the_package_comes_before_the_repository(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "src" / "dina_lrm"
    monkeypatch.setattr(locate, "_PACKAGE", package)
    in_repository = make_world(tmp_path / "repository" / "worlds" / "emoji")
    assert locate.emoji_root() == in_repository
    in_package = make_world(package / "_worlds" / "emoji")
    assert locate.emoji_root() == in_package


def test_a_world_that_is_not_whole_is_none(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(InputError, match=r"preferences.*make demo"):
        locate.emoji_root(tmp_path)
    monkeypatch.setattr(locate, "_PACKAGE", tmp_path / "a" / "b" / "c")
    with pytest.raises(InputError, match="nor"):
        locate.emoji_root()
