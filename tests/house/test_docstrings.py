"""Docstrings name what is there. ruff holds their form and arguments; here are the attributes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


def documented_attributes(node: ast.ClassDef) -> set[str]:
    """Names under `Attributes:`."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE)
    return set(re.findall(r"^ {4}(\w+):", section.group(1), re.MULTILINE)) if section else set()


def own_attributes(node: ast.ClassDef) -> Iterator[str]:
    """Fields, properties, and what any method sets on self."""
    for part in ast.walk(node):
        match part:
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.FunctionDef(name=name, decorator_list=[_, *_]):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def classes() -> list[tuple[Path, ast.ClassDef]]:
    found = [(path, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [(path, node) for path, node in found if isinstance(node, ast.ClassDef) and documented_attributes(node)]


@pytest.mark.parametrize(("path", "node"), classes(), ids=lambda value: getattr(value, "name", None))
def test_documented_attributes_are_those_of_the_class(path: Path, node: ast.ClassDef) -> None:
    assert documented_attributes(node) <= set(own_attributes(node)), f"{path.name}: {node.name}"
