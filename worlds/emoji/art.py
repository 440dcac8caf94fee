"""Emoji art as training images: npm packages to 64-pixel pictures with a table of what they are.

The art lives in npm packages as SVG inside JSON. This step downloads the pinned archives (`npm pack`), joins every
icon to a Unicode emoji by code point or by name, rasterises at 256 pixels, reduces to 64 by box filter and pastes it
on white. The result is `art/<style>.parquet` with the columns of `ART_SCHEMA`; attribution is in README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 64
GROUPS = {
    0: "smileys",
    3: "animals",
    4: "food",
    5: "travel",
    6: "activities",
    7: "objects",
}
NAMES_PACKAGE = "emojibase-data@17.0.0"


@dataclass(frozen=True)
class Style:
    """One drawing style: the npm package it comes from, and its licence as an SPDX identifier."""

    name: str
    package: str
    licence: str
    author: str
    phrase: str


STYLES = (
    Style("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Google, Noto Emoji", "noto"),
    Style("blob", "@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Google, Noto Emoji 1 (blobs)", "blob"),
    Style("flat", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Microsoft, Fluent Emoji Flat", "flat"),
    Style("glossy", "@iconify-json/fluent-emoji@1.2.7", "MIT", "Microsoft, Fluent Emoji Color", "glossy"),
    Style("twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twitter, Twemoji", "twemoji"),
)
JUDGE_STYLES = (  # more drawings of the same concepts, for the judge's eye only: they are not shipped
    Style("emojione", "@iconify-json/emojione@1.2.3", "CC-BY-4.0", "EmojiOne", "emojione"),
    Style("3d", "@lobehub/fluent-emoji-3d@1.1.0", "MIT", "Microsoft, Fluent Emoji 3D", "3d"),
)
HELD_OUT_STYLE = "twemoji"  # never shown to the generator, its VAE, its text encoders or a reward model in training

ART_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),  # the emoji's name: "red apple"
        ("style", pa.string()),
        ("group", pa.string()),
        ("subgroup", pa.int32()),
        ("keywords", pa.list_(pa.string())),
        ("split", pa.string()),  # "train", or "held_out" for the concept-style pairs that no network of the world saw
        ("image", pa.binary()),  # lossless WebP, 64 x 64 RGB
    ]
)


@dataclass(frozen=True)
class Concept:
    """One emoji that is neither a flag, a symbol, a person nor a clock face."""

    name: str
    hexcode: str
    group: str
    subgroup: int
    keywords: tuple[str, ...]


def download(package: str, cache: Path) -> Path:
    """Fetch one npm archive into `cache` and unpack it; a second call finds the folder."""
    folder = cache / re.sub(r"[^a-z0-9.]+", "-", package)
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=cache, check=True, capture_output=True, text=True
        )
        archive = cache / done.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
    return folder / "package"


def slug(text: str) -> str:
    """Iconify's spelling of an emoji name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "").replace("'", "")).strip("-")


def plain_hexcode(hexcode: str) -> str:
    """A code point sequence without variation selectors, in lower case."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def read_concepts(package: Path) -> list[Concept]:
    """The emoji of `GROUPS`, clock faces left out: at 64 pixels they differ by the angle of one hand."""
    concepts = []
    for row in json.loads((package / "en" / "data.json").read_text()):
        if row.get("group") not in GROUPS or re.search(r"(o’clock|-thirty)$", row["label"]):
            continue
        keywords = tuple(tag for tag in row.get("tags", []) if tag.isascii() and len(tag) > 2)
        concepts.append(
            Concept(
                row["label"].lower(), plain_hexcode(row["hexcode"]), GROUPS[row["group"]], row["subgroup"], keywords
            )
        )
    return concepts


def find_icons(package: Path, concepts: list[Concept]) -> Iterator[tuple[Concept, str]]:
    """Each concept that the icon set draws, with its SVG."""
    icons = json.loads((package / "icons.json").read_text())
    by_code = json.loads((package / "chars.json").read_text()) if (package / "chars.json").exists() else {}
    by_code = {plain_hexcode(code): name for code, name in by_code.items()}
    for concept in concepts:
        name = by_code.get(concept.hexcode, slug(concept.name))
        alias = icons.get("aliases", {}).get(name, {})
        icon = icons["icons"].get(alias.get("parent", name))
        if icon is not None:
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
            yield concept, f"{head}{icon['body']}</svg>"


def rasterise(svg: str) -> Image.Image:
    """Draw an SVG on white, 64 x 64."""
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE)
    return reduce(Image.open(io.BytesIO(bytes(drawn))))


def reduce(picture: Image.Image) -> Image.Image:
    """Paste a 256-pixel picture on white and reduce it to 64 x 64."""
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def to_webp(picture: Image.Image) -> bytes:
    """Lossless WebP bytes."""
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def hold_out(concept: str, style: str) -> bool:
    """Whether a concept-style pair is kept from every network: 10 % of concepts lose one family of shapes.

    flat and glossy are one family (the same outlines), so they are held out together.
    """
    digest = hashlib.sha256(concept.encode()).digest()
    family = ("noto", "blob", "fluent")[digest[1] % 3]
    return digest[0] < 26 and {"flat": "fluent", "glossy": "fluent"}.get(style, style) == family


def find_pictures(package: Path, concepts: list[Concept]) -> Iterator[tuple[Concept, Path]]:
    """Each concept that a package of WebP files, named by code point, draws."""
    files = {plain_hexcode(path.stem): path for path in sorted((package / "assets").glob("*.webp"))}
    for concept in concepts:
        if concept.hexcode in files:
            yield concept, files[concept.hexcode]


def build_for_judge(cache: Path, out: Path, names: set[str]) -> None:
    """Write the tables of `JUDGE_STYLES`, only of concepts that the shipped art has."""
    concepts = [c for c in read_concepts(download(NAMES_PACKAGE, cache)) if c.name in names]
    out.mkdir(parents=True, exist_ok=True)
    for style in JUDGE_STYLES:
        package = download(style.package, cache)
        if (package / "icons.json").exists():
            found = ((concept, rasterise(svg)) for concept, svg in find_icons(package, concepts))
        else:
            found = ((concept, reduce(Image.open(path))) for concept, path in find_pictures(package, concepts))
        rows = [make_row(concept, style, picture) for concept, picture in found]
        pq.write_table(pa.Table.from_pylist(rows, ART_SCHEMA), out / f"{style.name}.parquet", compression="zstd")
        print(f"{style.name}: {len(rows)} images")


def make_row(concept: Concept, style: Style, picture: Image.Image) -> dict[str, object]:
    """One row of an art table."""
    held_out = style.name == HELD_OUT_STYLE or hold_out(concept.name, style.name)
    return {
        "concept": concept.name,
        "style": style.name,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "keywords": list(concept.keywords),
        "split": "held_out" if held_out else "train",
        "image": to_webp(picture),
    }


def build(cache: Path, out: Path) -> None:
    """Write one parquet file a style; only concepts drawn in at least three of the training styles are kept."""
    concepts = read_concepts(download(NAMES_PACKAGE, cache))
    found = {style.name: dict(find_icons(download(style.package, cache), concepts)) for style in STYLES}
    trained = [style.name for style in STYLES if style.name != HELD_OUT_STYLE]
    kept = {c for c in concepts if sum(c in found[name] for name in trained) >= 3}
    out.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        rows = [make_row(c, style, rasterise(svg)) for c, svg in found[style.name].items() if c in kept]
        pq.write_table(pa.Table.from_pylist(rows, ART_SCHEMA), out / f"{style.name}.parquet", compression="zstd")
        held = sum(row["split"] == "held_out" for row in rows)
        size = sum(len(row["image"]) for row in rows) / 1e6
        print(f"{style.name}: {len(rows)} images, {held} held out, {size:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/dina-lrm/emoji-art").expanduser())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "art")
    parser.add_argument("--only-judge", action="store_true", help="fetch only what the judge sees besides")
    arguments = parser.parse_args()
    if arguments.only_judge:
        tables = [pq.read_table(path, columns=["concept"]) for path in arguments.out.glob("*.parquet")]
        names = {name for table in tables for name in table["concept"].to_pylist()}
        build_for_judge(arguments.cache, arguments.out.parent / "build" / "judge-art", names)
    else:
        build(arguments.cache, arguments.out)
