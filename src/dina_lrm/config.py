"""Strict configuration: a pydantic base that refuses what it does not know, read from YAML or JSON, changed by paths.

A value is parsed by YAML's safe rules and typed by the field that takes it; nothing is ever evaluated.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dina_lrm.errors import ConfigError

__all__ = ["Config", "apply_overrides", "explain", "load_config", "parse_config"]

Values = dict[str, Any]
KIND = "kind"
_PLAIN_TAGS = ("bool", "float", "int", "none", "str")


class Config(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a configuration from a `.yaml`, `.yml` or `.json` file.

    Args:
        cls: what the file describes.
        path: of the file.

    Returns:
        The configuration, each value typed by its field: `5e-5` is a number, also where YAML reads text.

    Raises:
        ConfigError: no such file, not YAML or JSON, an unknown key, or a value of the wrong kind.
    """
    file = Path(path)
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"a configuration is a .yaml, .yml or .json file, got {file}")
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is not {file.suffix[1:].upper()}: {' '.join(str(error).split())}") from error
    return parse_config(cls, {} if values is None else values, str(file))


def parse_config(cls: type[ConfigT], values: object, source: str) -> ConfigT:
    """Build a configuration from plain values.

    Args:
        cls: what the values describe.
        values: keys and values; nested configurations are mappings.
        source: where they come from, for the message.

    Returns:
        The configuration.

    Raises:
        ConfigError: an unknown key, with the closest accepted ones, or a value of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source} must hold keys and values, got {type(values).__name__}")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise explain(error, cls, source) from error


def apply_overrides(config: ConfigT, overrides: Sequence[str]) -> ConfigT:
    """Change values by path, all at once: `["optimiser.learning_rate=1e-4", "head.kind=mean_pool"]`.

    Values are YAML (`0.1`, `true`, `null`, `[0.2, 0.5]`), or plain text where the field takes text. Elements of a list
    have their index as key. A new `kind` starts that part afresh, with the defaults of the new kind.

    Args:
        config: what to change; it stays as it is.
        overrides: `path.to.key=value` each.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: not `key=value`, an unknown key, or a value of the wrong kind.
    """
    texts = dict(_split_override(override) for override in overrides)
    parsed = {path: _parse_value(path, text) for path, text in texts.items()}
    cls = type(config)
    try:
        return cls.model_validate(_changed(config, parsed))
    except ValidationError as error:
        # YAML made 7 of "007" and a date of "2026-01-02": where such a value does not fit, offer the text itself.
        refused = {".".join(_locate(detail["loc"], cls)[0]) for detail in error.errors()}
        retry = {path: texts[path] if path in refused else value for path, value in parsed.items()}
        if retry == parsed:
            raise explain(error, cls, "--set") from error
        try:
            return cls.model_validate(_changed(config, retry))
        except ValidationError:
            raise explain(error, cls, "--set") from error


def explain(error: ValidationError, cls: type[BaseModel], source: str) -> ConfigError:
    """Pydantic's findings as our own error, on one line: every full path, and for an unknown key the closest accepted.

    Args:
        error: what pydantic raised.
        cls: what it was validating.
        source: where the values come from.

    Returns:
        The error to raise.
    """
    findings = dict.fromkeys(_finding(dict(detail), cls) for detail in error.errors())
    return ConfigError(f"{source}: {'; '.join(findings)}")


def _finding(detail: Values, cls: type[BaseModel]) -> str:
    path, owners = _locate(detail["loc"], cls)
    name = ".".join(path) or "configuration"
    match detail["type"]:
        case "extra_forbidden":
            accepted = sorted({key for owner in owners for key in owner.model_fields})
            close = difflib.get_close_matches(path[-1], accepted, n=3)
            hint = f"did you mean {' or '.join(close)}? Accepted here" if close else "accepted here"
            return f'unknown key "{path[-1]}" at {name}; {hint}: {", ".join(accepted)}'
        case "missing":
            return f"{name} is missing and has no default"
        case "union_tag_invalid":
            return f"{name}.{KIND} must be one of {detail['ctx']['expected_tags']}, got {detail['ctx']['tag']!r}"
        case "union_tag_not_found":
            return f"{name}.{KIND} is missing: it says which kind of {path[-1]} this is"
        case "value_error":  # raised by a validator of ours, in our own words
            return f"{name}: {detail['msg'].removeprefix('Value error, ')}"
    message = detail["msg"]
    return f"{name}: {message[:1].lower()}{message[1:]}, got {detail['input']!r}"


def _split_override(override: str) -> tuple[str, str]:
    path, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigError(f'--set takes path.to.key=value, got "{override}"')
    return path.strip(), text.strip()


def _parse_value(path: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {path}: {text!r} is not a YAML value; quote it if it is text") from error


def _changed(config: Config, values: Mapping[str, object]) -> Values:
    tree = _open(config)
    # `kind` first: it empties its part, which the other keys then fill.
    for path, value in sorted(values.items(), key=lambda item: not f".{item[0]}".endswith(f".{KIND}")):
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = _enter(node, key, path)
        _put(node, last, value, path)
    return tree


def _open(node: object) -> Any:
    """A container that can be changed, one level deep."""
    if isinstance(node, Config):
        return {name: getattr(node, name) for name in type(node).model_fields}
    return list(node) if isinstance(node, list | tuple) else dict(node) if isinstance(node, Mapping) else {}


def _enter(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        node[_index(node, key, path)] = child = _open(node[_index(node, key, path)])
        return child
    node[key] = child = _open(node.get(key))
    return child


def _put(node: Any, key: str, value: object, path: str) -> None:
    if isinstance(node, list):
        node[_index(node, key, path)] = value
    elif key == KIND and node.get(KIND) != value:
        node.clear()
        node[KIND] = value
    else:
        node[key] = value


def _index(node: Sequence[object], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"--set {path}: {key!r} must be an index from 0 to {len(node) - 1}")
    return int(key)


def _locate(location: Sequence[int | str], cls: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """Pydantic's location as the user would write it, and the configurations that may own its last key.

    Pydantic also names the member of a union that it tried; such tags are left out, and narrow the owners.
    """
    path: list[str] = []
    owners: list[type[BaseModel]] = []
    here: list[type[BaseModel]] = [cls]
    for part in map(str, location):
        fields = [owner.model_fields[part].annotation for owner in here if part in owner.model_fields]
        tagged = [owner for owner in here if part in _tags(owner)]
        if fields:
            path, owners, here = [*path, part], here, list(_models(fields))
        elif tagged:
            here = tagged
        elif part not in _PLAIN_TAGS or here:  # an index, a key of a mapping, or a key that nobody knows
            path, owners = [*path, part], here
    return path, owners


def _tags(owner: type[BaseModel]) -> tuple[object, ...]:
    kind = owner.model_fields.get(KIND)
    return (owner.__name__, *(typing.get_args(kind.annotation) if kind else ()))


def _models(annotations: Sequence[Any]) -> Iterator[type[BaseModel]]:
    """Every configuration named in annotations, inside unions, lists and mappings too."""
    for annotation in annotations:
        if typing.get_args(annotation):
            yield from _models(typing.get_args(annotation))
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
