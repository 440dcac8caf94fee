"""What every page is made of: one file, its style inside, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

__all__ = ["document", "duration", "paragraph", "section", "table", "tile"]


def document(title: str, body: str) -> str:
    """A whole page around its body."""
    style = files("dina_lrm.report").joinpath("page.css").read_text(encoding="utf-8")
    body = body.replace(" %", "\u00a0%")  # a number and its sign stay on one line
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A headed part of a page."""
    return f"\n<section><h2>{title}</h2>\n{''.join(parts)}</section>\n"


def paragraph(text: str, kind: str = "") -> str:
    """Text of a class of `page.css`; the plain one without."""
    return f'<p class="{kind}">{text}</p>\n' if kind else f"<p>{text}</p>\n"


def tile(what: str, number: str, explained: str) -> str:
    """One number, large."""
    return f'<div class="tile"><span class="what">{what}</span><b>{number}</b><span>{explained}</span></div>\n'


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Cells that are HTML already, in a box of its own where they are wider than the page."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
