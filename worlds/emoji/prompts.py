"""What people might write when they want one of these emoji: captions of concepts, in several phrasings.

The canonical caption is `"{name}, {style} style"`. Keywords that only one concept claims serve as its aliases:
"locomotive" is as good as "steam train", "face" says nothing. `HELD_OUT_TEMPLATES` and `Phrases.unseen_alias` are in
no training set; they measure how far the text encoders carry over to unseen wording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

WITH_STYLE = (
    "a {style} emoji of {a_name}",
    "{style} style {name}",
    "{a_name} in {style} style",
    "{style} {name} emoji",
    "{a_name}, {style}",
    "an emoji of {a_name}, {style} style",
    "{keyword} {name}, {style} style",
    "{name}, {keyword}, {style} style",
    "{alias}, {style} style",
    "a {style} emoji of {an_alias}",
)
WITHOUT_STYLE = (
    "{name}",
    "{a_name}",
    "{name} emoji",
    "an emoji of {a_name}",
    "a picture of {a_name}",
    "{keyword} {name}",
    "{alias}",
)
HELD_OUT_TEMPLATES = ("please draw {a_name} the {style} way", "{style}: {keyword}, {name}")


@dataclass(frozen=True)
class Phrases:
    """The words for one concept: its name, its keywords, those that name nothing else, and one of these held out."""

    name: str
    keywords: tuple[str, ...]
    aliases: tuple[str, ...]
    unseen_alias: str | None = None


def read_phrases(art: Iterable[dict[str, Any]]) -> dict[str, Phrases]:
    """The words for each concept in rows of the art tables, by name, sorted."""
    keywords = {row["concept"]: tuple(row["keywords"]) for row in art}
    claims = Counter(keyword for words in keywords.values() for keyword in words)
    phrases = {}
    for name, words in sorted(keywords.items()):
        aliases = [word for word in words if claims[word] == 1 and len(word) > 3 and word not in keywords]
        unseen = aliases.pop() if len(aliases) > 3 else None
        others = tuple(word for word in words if word not in name and word != unseen)
        phrases[name] = Phrases(name, others or (name.split()[-1],), tuple(aliases) or (name,), unseen)
    return phrases


def with_article(noun: str) -> str:
    """'an apple', 'a banana', but 'grapes'."""
    if noun.endswith("s") and not noun.endswith(("ss", "us")):
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def fill(template: str, phrases: Phrases, style: str, generator: torch.Generator) -> str:
    """A template's words, keyword and alias drawn by `generator`."""

    def draw(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    alias = draw(phrases.aliases)
    return template.format(
        name=phrases.name,
        a_name=with_article(phrases.name),
        style=style,
        keyword=draw(phrases.keywords),
        alias=alias,
        an_alias=with_article(alias),
    )


def canonical(name: str, style: str) -> str:
    """The caption to use when there is no reason for another."""
    return f"{name}, {style} style"


def caption(phrases: Phrases, style: str | None, generator: torch.Generator) -> str:
    """A caption at random; with a style, it is the canonical one in one of three draws."""
    if style is not None and float(torch.rand((), generator=generator)) < 1 / 3:
        return canonical(phrases.name, style)
    templates = WITHOUT_STYLE if style is None else WITH_STYLE
    template = templates[int(torch.randint(len(templates), (), generator=generator))]
    return fill(template, phrases, style or "", generator)


def every_caption(phrases: Phrases, styles: Iterable[str]) -> list[str]:
    """Each training template once in each style: what tokenizers are trained on."""
    generator = torch.Generator().manual_seed(0)
    captions = [fill(template, phrases, "", generator) for template in WITHOUT_STYLE]
    for style in styles:
        captions += [canonical(phrases.name, style)]
        captions += [fill(template, phrases, style, generator) for template in WITH_STYLE]
    return captions + list(phrases.keywords) + list(phrases.aliases)
