"""Comparisons of pictures to a preference folder: each picture is encoded once, and work that was killed goes on.

Pictures are encoded in parts that lie beside the folder until it is whole (`.FOLDER.encoding`), so memory holds one part of
pictures, the list of comparisons, and never all latents.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dina_lrm.backbones import Backbone
from dina_lrm.data import (
    Candidate,
    LatentParts,
    Origin,
    PreferencePair,
    refuse_foreign_data,
    write_preference_data,
)
from dina_lrm.data.sources import BadRow, Picture, SourcePair
from dina_lrm.errors import DataError, ImageError, ValueRangeError
from dina_lrm.images import to_square_pixels
from dina_lrm.runtime.parts import Parts
from dina_lrm.runtime.progress import ProgressBar

__all__ = ["EncodingReport", "EncodingSettings", "encode_preferences"]

HELD_OUT = "validation"


@dataclass(frozen=True)
class EncodingSettings:
    """How pictures become latents, and comparisons splits.

    Attributes:
        side: of the square that pictures are cut and resized to, in pixels; None takes the base's native size.
        split: of comparisons whose source names none.
        held_out: share of the prompts of those that go to the split `validation` instead, told by the prompt's words.
        preview: side of the small pictures kept for people; 0 keeps none.
        max_errors: so many bad rows and pictures are left out; one more ends the work.
        batch_size: pictures a forward.
        part_size: pictures that are kept at once: what a kill can lose.
    """

    side: int | None = None
    split: str = "train"
    held_out: float = 0.0
    preview: int = 96
    max_errors: int = 0
    batch_size: int = 8
    part_size: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueRangeError(f"held_out must be a share of 0 or more and below 1, got {self.held_out:g}")
        if not self.split.isidentifier():
            raise ValueRangeError(f"a split's name must be letters, digits and underscores, got {self.split!r}")
        for name in ("batch_size", "part_size"):
            if getattr(self, name) < 1:
                raise ValueRangeError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass
class EncodingReport:
    """What came of a source.

    Attributes:
        folder: that was written.
        pictures: encoded.
        candidates: pictures under their prompts.
        pairs: comparisons by split.
        lost_pairs: comparisons left out because a picture of theirs was bad.
        errors: bad rows and pictures by what is wrong.
        examples: where the first of each kind stands.
    """

    folder: Path
    pictures: int = 0
    candidates: int = 0
    pairs: dict[str, int] = field(default_factory=dict)
    lost_pairs: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, fault: BadRow, most: int) -> None:
        """One more bad row or picture.

        Raises:
            DataError: one too many.
        """
        self.errors[fault.reason] += 1
        self.examples.setdefault(fault.reason, fault.place)
        if self.errors.total() > most:
            raise DataError(
                f"{self.errors.total()} bad rows or pictures, {most} were allowed: {self.told()}; mend them, or allow more "
                "with max_errors (--max-errors); what was encoded is kept"
            )

    def told(self) -> str:
        """The faults, each with its number and first place."""
        return "; ".join(
            f"{count} x {reason} (first: {self.examples[reason]})" for reason, count in self.errors.items()
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "folder": str(self.folder), "errors": dict(self.errors)}


def encode_preferences(
    backbone: Backbone,
    source: Iterable[SourcePair | BadRow],
    folder: Path | str,
    settings: EncodingSettings | None = None,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> EncodingReport:
    """Encode the pictures of comparisons and write them as a preference folder, whole or not at all.

    Args:
        backbone: whose VAE encodes.
        source: comparisons, and the rows that say none.
        folder: to write.
        settings: sizes, splits, tolerance.
        about: where the comparisons come from; kept in `dataset.json`.
        quiet: no progress on stderr.

    Returns:
        What was written and what was left out.

    Raises:
        DataError: more faults than are allowed, no comparison at all, or the folder holds other things.
        ValueRangeError: a side that the base does not take.
    """
    settings, folder = settings or EncodingSettings(), Path(folder).absolute()
    refuse_foreign_data(folder)
    side = settings.side or backbone.native_size
    if side < 1 or side % backbone.image_multiple:
        raise ValueRangeError(f"side must be a multiple of {backbone.image_multiple} for this base, got {side}")
    report = EncodingReport(folder)
    pairs = _told_apart(_sound_pairs(source, report, settings.max_errors))
    pictures = _pictures(pairs)
    work = _Work.open(backbone, folder, pictures, side, settings)
    rows = work.encode(backbone, report, quiet)
    kept = [pair for pair in pairs if pair.chosen.name in rows and pair.rejected.name in rows]
    if not kept:
        raise DataError(f"no comparison is left whose two pictures could be read: {report.told()}")
    report.pictures = len(rows)
    report.lost_pairs += len(pairs) - len(kept)
    _write(work, kept, rows, backbone, report, settings, {"side": side, **(about or {})})
    work.parts.remove()
    return report


def _sound_pairs(source: Iterable[SourcePair | BadRow], report: EncodingReport, most: int) -> list[SourcePair]:
    """Comparisons whose files are there; told before anything is encoded."""
    pairs, seen = [], {}
    for row in source:
        if isinstance(row, BadRow):
            report.count(row, most)
            continue
        for picture in (row.chosen, row.rejected):
            if picture.file not in seen:
                seen[picture.file] = picture.file.is_file()
                if not seen[picture.file]:
                    report.count(BadRow(str(picture.file), "there is no such picture"), most)
        if seen[row.chosen.file] and seen[row.rejected.file]:
            pairs.append(row)
        else:
            report.lost_pairs += 1
    if not pairs:
        raise DataError(f"the source has no comparison with two pictures: {report.told() or 'it is empty'}")
    return pairs


def _told_apart(pairs: Iterable[SourcePair]) -> list[SourcePair]:
    """The same comparisons with one record a picture, whose name no other picture has."""
    known: dict[object, Picture] = {}
    taken: Counter[str] = Counter()

    def only(picture: Picture) -> Picture:
        if picture.key not in known:
            name = picture.name
            while taken[name]:
                taken[picture.name] += 1
                name = f"{picture.name} ({taken[picture.name]})"
            taken[name] = 1
            known[picture.key] = replace(picture, name=name)
        return known[picture.key]

    return [replace(pair, chosen=only(pair.chosen), rejected=only(pair.rejected)) for pair in pairs]


def _pictures(pairs: Iterable[SourcePair]) -> list[Picture]:
    """Each picture once, in the order of the source."""
    return list({picture.name: picture for pair in pairs for picture in (pair.chosen, pair.rejected)}.values())


@dataclass(frozen=True)
class _Work:
    """Pictures in parts, encoded or still to be.

    Attributes:
        parts: those that are done.
        chunks: the pictures of each part.
        side: of the squares, in pixels.
        settings: of the whole encoding.
    """

    parts: Parts
    chunks: list[list[Picture]]
    side: int
    settings: EncodingSettings

    @staticmethod
    def open(backbone: Backbone, folder: Path, pictures: list[Picture], side: int, settings: EncodingSettings) -> _Work:
        """Take up what an earlier run has left, if it encoded the same pictures in the same way."""
        digest = hashlib.sha256()
        for picture in pictures:
            facts = picture.file.stat()
            digest.update(
                f"{picture.name}\0{picture.file}\0{picture.cell}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode()
            )
        size = settings.part_size
        depends_on = {
            "pictures": digest.hexdigest(),
            "side": side,
            "preview": settings.preview,
            "part_size": size,
            "base": backbone.base,
            "signature": backbone.signature(),
        }
        chunks = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        return _Work(Parts.open(folder.parent / f".{folder.name}.encoding", depends_on), chunks, side, settings)

    def encode(self, backbone: Backbone, report: EncodingReport, quiet: bool) -> dict[str, int]:
        """Encode what is not yet; the row of each good picture by its name."""
        rows: dict[str, int] = {}
        done = sum(len(chunk) for number, chunk in enumerate(self.chunks) if number in self.parts)
        with ProgressBar("encode", sum(map(len, self.chunks)), done, enabled=not quiet) as bar:
            for number, chunk in enumerate(self.chunks):
                part = self.parts.get(number)
                if part is None:
                    part = _encode_part(backbone, chunk, self.side, self.settings, bar)
                    self.parts.put(number, part)
                good = part["good"].tolist()
                for picture, fine in zip(chunk, good, strict=True):
                    if fine:
                        rows[picture.name] = len(rows)
                    else:
                        report.count(BadRow(picture.name, "the picture cannot be read"), self.settings.max_errors)
        return rows

    def latents(self) -> Iterator[Tensor]:
        """Of the good pictures, part after part."""
        for part in self._every_part():
            yield part["latents"]

    def previews(self) -> Iterator[bytes | None]:
        """Of the good pictures, one after the other."""
        for part in self._every_part():
            content = part["previews"].numpy().tobytes()
            ends = part["preview_ends"].tolist()
            for start, end in zip([0, *ends], ends, strict=False):
                yield content[start:end] or None

    def _every_part(self) -> Iterator[dict[str, Tensor]]:
        for number in range(len(self.chunks)):
            part = self.parts.get(number)
            if part is None:
                raise DataError(
                    f"a part of {self.parts.folder} was removed while it was needed; run the encoding again"
                )
            yield part


def _encode_part(
    backbone: Backbone, pictures: Sequence[Picture], side: int, settings: EncodingSettings, bar: ProgressBar
) -> dict[str, Tensor]:
    """Latents and previews of the pictures that can be read, and which they are."""
    latents: list[Tensor] = []
    good: list[bool] = []
    previews: list[bytes] = []
    for start in range(0, len(pictures), settings.batch_size):
        pixels = []
        for picture in pictures[start : start + settings.batch_size]:
            try:
                image = picture.open()
            except ImageError:
                good.append(False)
            else:
                good.append(True)
                pixels.append(to_square_pixels(image, side))
                previews.append(_preview(image, settings.preview))
            bar.advance()
        if pixels:
            with torch.no_grad():
                latents.append(backbone.encode_images(torch.stack(pixels).to(backbone.device)).half().cpu())
    shape = (0, *latents[0].shape[1:]) if latents else (0,)
    return {
        "latents": torch.cat(latents) if latents else torch.zeros(shape, dtype=torch.float16),
        "good": torch.tensor(good),
        "previews": torch.from_numpy(np.frombuffer(b"".join(previews), dtype=np.uint8).copy()),
        "preview_ends": torch.tensor([len(one) for one in previews], dtype=torch.int64).cumsum(0),
    }


def _preview(image: Image.Image, side: int) -> bytes:
    if not side:
        return b""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return file.getvalue()


def _write(
    work: _Work,
    pairs: Sequence[SourcePair],
    rows: Mapping[str, int],
    backbone: Backbone,
    report: EncodingReport,
    settings: EncodingSettings,
    about: Mapping[str, Any],
) -> None:
    """The folder, from the parts."""
    prompts: dict[str, dict[str, str]] = {name: {} for name in rows}
    for pair in pairs:
        for picture in (pair.chosen, pair.rejected):
            known = prompts[picture.name]
            # A picture under a second prompt is a second candidate with the same latents.
            known.setdefault(pair.prompt, picture.name if not known else f"{picture.name}#{len(known)}")

    def candidates() -> Iterator[Candidate]:
        for (name, row), preview in zip(rows.items(), work.previews(), strict=True):
            for prompt, identity in prompts[name].items():
                yield Candidate(identity, prompt, row, Origin("picture", detail=name), preview)

    by_split: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        ids = (prompts[pair.chosen.name][pair.prompt], prompts[pair.rejected.name][pair.prompt])
        votes = (pair.votes_chosen, pair.votes_rejected, pair.votes_tied)
        found = PreferencePair(pair.prompt, *ids, *votes, kind=pair.kind)
        by_split.setdefault(_split_of(pair, settings), []).append(found)
    first = next(part for part in work.latents() if len(part))
    shape = (len(rows), *first.shape[1:])
    written = write_preference_data(
        report.folder,
        candidates(),
        LatentParts(shape, (part for part in work.latents() if len(part))),
        by_split,
        name=report.folder.name,
        backbone=backbone.signature(),
        about=about,
    )
    report.candidates = written.info["counts"]["candidates"]
    report.pairs = dict(written.info["counts"]["pairs"])


def _split_of(pair: SourcePair, settings: EncodingSettings) -> str:
    """Prompts, not pairs, are held out, and by their words: a longer source keeps the split of what it had."""
    if pair.split:
        return pair.split
    return HELD_OUT if zlib.crc32(pair.prompt.encode()) / 2**32 < settings.held_out else settings.split
