"""Finding the recipe that `dina-lrm train` or `align` was asked for: a function that returns the verb's configuration."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

import dina_lrm
from dina_lrm.config import Config, apply_overrides, explain, load_config
from dina_lrm.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Config)

ENTRY_POINTS = "dina_lrm.recipes"
FUNCTION = "recipe"
PACKAGE = "recipes."  # a recipe may be named as a module of the folder


def read_recipe(
    name: str, cls: type[ConfigT], overrides: Sequence[str] | None = None, out: Path | None = None
) -> ConfigT:
    """The run that a name stands for, with values changed.

    Args:
        name: as in `find_recipe`.
        cls: the configuration that is wanted.
        overrides: `path.to.key=value` each.
        out: the same as `out=...` among them.
    """
    changes = [*(overrides or ()), *([f"out={json.dumps(str(out))}"] if out is not None else ())]
    return apply_overrides(find_recipe(name, cls), changes)


def find_recipe(name: str, cls: type[ConfigT]) -> ConfigT:
    """The run that a name stands for.

    Args:
        name: a `.yaml` or `.json` file; a `.py` file with a function `recipe`; `module:function`; or the name of a file
            in `recipes/` (here, or beside the package), also as `recipes.NAME`, or of an entry point of the group
            `dina_lrm.recipes`.
        cls: the configuration that is wanted: `TrainConfig` or `AlignConfig`.

    Returns:
        Its configuration.

    Raises:
        ConfigError: nothing of that name, or what it names gives no such configuration.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return load_config(cls, path)
    try:
        config = _find(name.removeprefix(PACKAGE))()
    except ValidationError as error:
        raise explain(error, cls, f"recipe {name}") from error
    if not isinstance(config, cls):
        other = {"TrainConfig": "train", "AlignConfig": "align"}.get(type(config).__name__)
        hint = f"; that is one for `dina-lrm {other}`" if other else ""
        raise ConfigError(
            f"recipe {name} must return a configuration of class {cls.__name__}, got {type(config).__name__}{hint}"
        )
    return config


def _find(name: str) -> Callable[[], object]:
    if name.endswith(".py"):
        return _from_file(Path(name))
    if ":" in name:
        module, _, function = name.partition(":")
        return _from_module(name, module, function)
    for folder in _folders():
        if (folder / f"{name}.py").is_file():
            return _from_file(folder / f"{name}.py")
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return _from_module(name, entry.module, entry.attr)
    known = recipe_names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"no recipe {name!r}{hint} Give a name ({', '.join(known) or 'none found here'}), module:function, "
        "or a .py, .yaml or .json file"
    )


def recipe_names() -> list[str]:
    """Names that `read_recipe` knows without a path."""
    files = {file.stem for folder in _folders() for file in folder.glob("*.py") if not file.stem.startswith("_")}
    return sorted(files | entry_points(group=ENTRY_POINTS).names)


def _folders() -> list[Path]:
    beside_package = Path(dina_lrm.__file__).parents[2] / "recipes"
    return [folder for folder in dict.fromkeys((Path("recipes").absolute(), beside_package)) if folder.is_dir()]


def _from_file(path: Path) -> Callable[[], object]:
    spec = importlib.util.spec_from_file_location(f"dina_lrm_recipe_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"no recipe file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _function(module, FUNCTION, str(path))


def _from_module(name: str, module: str, function: str) -> Callable[[], object]:
    try:
        return _function(importlib.import_module(module), function, name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"recipe {name}: {error}") from error


def _function(module: object, name: str, where: str) -> Callable[[], object]:
    function: object = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{where} has no function {name!r} that returns a configuration")
    return function
