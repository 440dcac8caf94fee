"""Where the arena's candidates come from: a preference folder, or a folder of prompts with pictures."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dina_lrm.data import Origin, PreferenceData
from dina_lrm.errors import DataError
from dina_lrm.images import open_image

PROMPTS_FILE = "prompts.jsonl"
SHOWN_SIDE = 1024  # pixels at most that a voter is sent
PREVIEW_SIDE = 256  # pixels at most of a preview in an exported folder


class CandidateSource(ABC):
    """Candidates by prompt, each with a picture to show and something to score.

    Attributes:
        name: of the collection, for people.
    """

    name: str

    @property
    @abstractmethod
    def by_prompt(self) -> Mapping[str, tuple[str, ...]]:
        """Ids of the candidates of each prompt that has two or more."""

    @abstractmethod
    def shown(self, candidate: str) -> bytes:
        """The picture that voters see, WebP, with nothing in it that tells where it came from."""

    @abstractmethod
    def preview(self, candidate: str) -> bytes:
        """A small WebP for an exported folder."""

    @abstractmethod
    def latents(self, candidates: Sequence[str]) -> Tensor | None:
        """`[n c h w]`, standardised as the backbone takes them; None where there are only pictures."""

    @abstractmethod
    def pictures(self, candidates: Sequence[str]) -> list[Image.Image]:
        """The pictures themselves, RGB."""

    def public_name(self, candidate: str) -> str:
        """Its id in what leaves the server, where no path of this machine is told."""
        return candidate

    def origin(self, candidate: str) -> Origin | None:
        """Where it came from, if anybody knows; without paths of this machine."""
        return None

    def oracle_utility(self, candidate: str) -> float | None:
        """Its known truth, if there is one."""
        return None

    @property
    def backbone(self) -> Mapping[str, Any]:
        """What made the latents; empty where there are none."""
        return {}

    @cached_property
    def prompt_of(self) -> dict[str, str]:
        """The prompt of each candidate."""
        return {candidate: prompt for prompt, candidates in self.by_prompt.items() for candidate in candidates}


@dataclass(frozen=True)
class _Row:
    place: int
    shown_place: int
    latents_row: int


class PreferenceSource(CandidateSource):
    """The candidates of a preference folder that have a picture: a preview of their own, or one of the same latents."""

    def __init__(self, data: PreferenceData, split: str | None = None) -> None:
        """Read the table of candidates.

        Args:
            data: the folder.
            split: only prompts of this split, such as one that the model was not trained on; None takes all.
        """
        self.name = str(data.info.get("name", data.folder.name))
        self._data = data
        self._rows: dict[str, _Row] = {}
        asked = None if split is None else set(data.pairs(split).prompt)
        table = data.candidates
        previewed = table["preview"].is_valid().to_pylist()
        latents_rows = table["latents_row"].to_pylist()
        with_picture = {row: place for place, row in enumerate(latents_rows) if previewed[place]}
        found: dict[str, list[str]] = {}
        for place, (candidate, prompt) in enumerate(
            zip(table["candidate"].to_pylist(), table["prompt"].to_pylist(), strict=True)
        ):
            row = latents_rows[place]
            if row not in with_picture or (asked is not None and prompt not in asked):
                continue
            self._rows[candidate] = _Row(place, place if previewed[place] else with_picture[row], row)
            found.setdefault(prompt, []).append(candidate)
        self._by_prompt = _comparable(found, str(data.folder))

    @property
    def by_prompt(self) -> Mapping[str, tuple[str, ...]]:
        return self._by_prompt

    def shown(self, candidate: str) -> bytes:
        encoded: bytes = self._data.candidates["preview"][self._rows[candidate].shown_place].as_py()
        return encoded

    def preview(self, candidate: str) -> bytes:
        return self.shown(candidate)

    def latents(self, candidates: Sequence[str]) -> Tensor | None:
        return self._data.latents([self._rows[candidate].latents_row for candidate in candidates])

    def pictures(self, candidates: Sequence[str]) -> list[Image.Image]:
        return [Image.open(io.BytesIO(self.shown(candidate))).convert("RGB") for candidate in candidates]

    def public_name(self, candidate: str) -> str:
        # What a data set calls its candidates stays, unless it calls them by where their files lay.
        return _fileless(candidate) if PurePath(candidate).is_absolute() else candidate

    def origin(self, candidate: str) -> Origin | None:
        origin = Origin.from_row(self._data.candidates["origin"][self._rows[candidate].place].as_py())
        if origin is not None and PurePath(origin.detail).is_absolute():
            return replace(origin, detail=PurePath(origin.detail).name)
        return origin

    def oracle_utility(self, candidate: str) -> float | None:
        utility: float | None = self._data.candidates["oracle_utility"][self._rows[candidate].place].as_py()
        return utility

    @property
    def backbone(self) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self._data.info.get("backbone", {})
        return told


class PictureSource(CandidateSource):
    """A folder with `prompts.jsonl`: lines of `{"prompt": "...", "images": ["a.png", "b.png"]}`, paths inside the folder.

    A candidate's id is made of its prompt and path, so lines may be added and moved without losing votes.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._paths: dict[str, Path] = {}
        found: dict[str, list[str]] = {}
        lines = _lines(folder / PROMPTS_FILE)
        for number, line in lines:
            where = f"{folder / PROMPTS_FILE}, line {number}"
            prompt, images = _parsed(line, where)
            for image in images:
                path = _inside(folder, image, where)
                candidate = f"{hashlib.sha256(prompt.encode()).hexdigest()[:8]}/{image}"
                if candidate not in self._paths:
                    self._paths[candidate] = path
                    found.setdefault(prompt, []).append(candidate)
        self._by_prompt = _comparable(found, str(folder / PROMPTS_FILE))

    @property
    def by_prompt(self) -> Mapping[str, tuple[str, ...]]:
        return self._by_prompt

    def shown(self, candidate: str) -> bytes:
        return _webp(open_image(self._paths[candidate]), SHOWN_SIDE)

    def preview(self, candidate: str) -> bytes:
        return _webp(open_image(self._paths[candidate]), PREVIEW_SIDE)

    def latents(self, candidates: Sequence[str]) -> Tensor | None:
        return None

    def pictures(self, candidates: Sequence[str]) -> list[Image.Image]:
        return [open_image(self._paths[candidate]) for candidate in candidates]

    def public_name(self, candidate: str) -> str:
        prompt, _, image = candidate.partition("/")
        return f"{prompt}-{_fileless(image)}"

    def origin(self, candidate: str) -> Origin | None:
        return Origin("upload", detail=self._paths[candidate].name)


def open_source(folder: str | Path, split: str | None = None) -> CandidateSource:
    """Open a folder of candidates, of either kind.

    Args:
        folder: a preference folder, or one with `prompts.jsonl`.
        split: of a preference folder, to take only its prompts.

    Returns:
        The source.

    Raises:
        DataError: neither, or one that is not whole.
    """
    folder = Path(folder)
    if folder.is_file():
        raise DataError(f"{folder} is a file; give the folder that it lies in, {folder.parent}")
    if (folder / PROMPTS_FILE).is_file():
        if split is not None:
            raise DataError(f"{folder} has {PROMPTS_FILE} and no splits; leave out split {split!r}")
        return PictureSource(folder)
    try:
        data = PreferenceData.open(folder)
    except DataError as error:
        raise DataError(f"{error}; or put {PROMPTS_FILE} there, to show pictures of your own") from error
    return PreferenceSource(data, split)


def _comparable(found: Mapping[str, Sequence[str]], where: str) -> dict[str, tuple[str, ...]]:
    """Prompts with two candidates or more."""
    comparable = {prompt: tuple(candidates) for prompt, candidates in found.items() if len(candidates) > 1}
    if not comparable:
        raise DataError(f"{where} has no prompt with two pictures to compare")
    return comparable


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it must be UTF-8, a JSON object a line") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _parsed(line: str, where: str) -> tuple[str, list[str]]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    prompt = value.get("prompt") if isinstance(value, dict) else None
    images = value.get("images") if isinstance(value, dict) else None
    listed = isinstance(images, list) and all(isinstance(image, str) for image in images)
    if not isinstance(prompt, str) or not prompt.strip() or not listed or not images:
        raise DataError(f'{where} must be {{"prompt": "...", "images": ["...", ...]}}, got {line[:80]}')
    return prompt, images


def _fileless(path: str) -> str:
    """A name for a file that tells nothing of its folders, and tells it from others of its name."""
    return f"{hashlib.sha256(path.encode()).hexdigest()[:8]}-{PurePath(path).name}"


def _inside(folder: Path, image: str, where: str) -> Path:
    """A picture of the folder, and of nowhere else."""
    path = (folder / image).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where} names {image!r}, which lies outside {folder}; copy it into the folder")
    try:
        with Image.open(path):  # the header alone
            return path
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{where} names {image!r}, which is no picture that can be read: {error}") from error


def _webp(picture: Image.Image, side: int) -> bytes:
    """WebP of the pixels alone, no larger than `side`."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90, method=4, exif=b"", icc_profile=b"")
    return buffer.getvalue()
