"""Budgets of size: a function that needs more than 80 lines, or a file that needs more than 500, is two."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES_OF_A_FUNCTION = 80
LINES_OF_A_FILE = 500
SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, less the docstring."""
    documented = node.body[0] if ast.get_docstring(node) is not None else None
    docstring = documented.end_lineno - documented.lineno + 1 if documented and documented.end_lineno else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_sizes(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_OF_A_FILE
    for node in functions(path):
        assert length(node) <= LINES_OF_A_FUNCTION, f"{path.name}: {node.name} has {length(node)} lines"


def test_functions_are_short_as_a_rule() -> None:
    lengths = [length(node) for path in SOURCES for node in functions(path)]
    assert statistics.median(lengths) <= 8
    assert statistics.quantiles(lengths, n=20)[-1] <= 40


def test_every_public_function_is_typed() -> None:
    for path in SOURCES:
        for node in functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not untyped and node.returns is not None, f"{path.name}: {node.name} {untyped}"
