"""Where the embedded world lies: inside the installed package, or in the repository that the package was installed from."""

from __future__ import annotations

from pathlib import Path

from dina_lrm.errors import InputError

__all__ = ["emoji_root"]

_PACKAGE = Path(__file__).resolve().parents[1]
_NEEDED = ("pipeline", "preferences")


def emoji_root(world: Path | str | None = None) -> Path:
    """The folder of the emoji world: `pipeline/` (the generator), `preferences/`, and beside them `judge/` and `art/`.

    Args:
        world: take this folder instead of looking for one.

    Returns:
        The first of: the one given, `_worlds/emoji` in the package, `worlds/emoji` in the repository.

    Raises:
        InputError: none of them is whole.
    """
    places = (
        [Path(world)]
        if world is not None
        else [_PACKAGE / "_worlds" / "emoji", _PACKAGE.parents[1] / "worlds" / "emoji"]
    )
    for place in places:
        if all((place / name).is_dir() for name in _NEEDED):
            return place
    looked = " nor ".join(f"{place}" for place in places)
    raise InputError(
        f"no emoji world with {' and '.join(_NEEDED)} in {looked}; clone the repository whole and run `make demo` in it, "
        "or build the world with the recipe in worlds/emoji"
    )
