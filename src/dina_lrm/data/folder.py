"""Read a preference folder: candidates, latents, and labelled pairs by split."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dina_lrm.data.schema import (
    CANDIDATE_SCHEMA,
    CANDIDATES_FILE,
    INFO_FILE,
    LATENTS_FILE,
    MORE_CANDIDATES,
    PAIR_SCHEMA,
    PAIRS_FOLDER,
    SCHEMA_VERSION,
    Origin,
)
from dina_lrm.errors import DataError, ImageError, ValueRangeError
from dina_lrm.runtime.files import sha256_file

Indices = Sequence[int] | npt.NDArray[np.int64] | Tensor


@dataclass(frozen=True)
class PairTable:
    """Labelled comparisons of one split, column by column; all columns have the same length.

    Attributes:
        prompt: what was asked for.
        chosen: candidate id.
        rejected: candidate id.
        chosen_row: row of the latents, int64.
        rejected_row: row of the latents, int64.
        target: `votes_chosen / (votes_chosen + votes_rejected)`, 0.5 when nobody decided; float32.
        votes_chosen: int32.
        votes_rejected: int32.
        votes_tied: int32.
        kind: what tells the two apart.
        chosen_origin: where chosen came from, or None.
        rejected_origin: where rejected came from, or None.
        chosen_utility: the oracle's truth, float64; NaN where there is none.
        rejected_utility: the oracle's truth, float64; NaN where there is none.
    """

    prompt: list[str]
    chosen: list[str]
    rejected: list[str]
    chosen_row: npt.NDArray[np.int64]
    rejected_row: npt.NDArray[np.int64]
    target: npt.NDArray[np.float32]
    votes_chosen: npt.NDArray[np.int32]
    votes_rejected: npt.NDArray[np.int32]
    votes_tied: npt.NDArray[np.int32]
    kind: list[str]
    chosen_origin: list[Origin | None]
    rejected_origin: list[Origin | None]
    chosen_utility: npt.NDArray[np.float64]
    rejected_utility: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, indices: Indices) -> PairTable:
        """The pairs at `indices`, in that order."""
        places = np.asarray(indices, dtype=np.int64)
        columns: dict[str, Any] = {
            name: column[places] if isinstance(column, np.ndarray) else [column[i] for i in places]
            for name, column in vars(self).items()
        }
        return replace(self, **columns)


@dataclass(frozen=True)
class PreferenceData:
    """A preference folder, opened: nothing but `dataset.json` is read until it is asked for.

    Attributes:
        folder: where it lies.
        info: what `dataset.json` says.
    """

    folder: Path
    info: dict[str, Any]

    @staticmethod
    def open(folder: str | Path) -> PreferenceData:
        """Open a folder.

        Args:
            folder: as `write_preference_data` made it.

        Returns:
            The data, read lazily.

        Raises:
            DataError: not a preference folder, one of another schema version, or one that lacks a file.
        """
        folder = Path(folder)
        path = folder / INFO_FILE
        if not path.is_file():
            raise DataError(
                f"{folder} is no preference folder: {INFO_FILE} is missing; write_preference_data makes one"
            )
        try:
            info = json.loads(path.read_bytes())
            version = info["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); it must be JSON with a schema_version") from error
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema_version {version!r}, this program reads {SCHEMA_VERSION}; "
                "write the folder again with this version, or install the one that wrote it"
            )
        data = PreferenceData(folder, info)
        for missing in (folder / name for name in data._expected_files() if not (folder / name).is_file()):
            raise DataError(f"{missing} is missing although {INFO_FILE} names it; fetch or write the folder again")
        return data

    def dataset_info(self) -> dict[str, Any]:
        """Name, counts, splits, backbone and hashes: what `dina-lrm info` prints."""
        return {"folder": str(self.folder), "splits": list(self.splits), **self.info}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, as they were written."""
        return tuple(self._entry("counts", "pairs"))

    @cached_property
    def candidates(self) -> pa.Table:
        """Every candidate of every table that `dataset.json` names, columns of `CANDIDATE_SCHEMA`."""
        more = sorted(name for name in self._entry("sha256") if fnmatch(name, MORE_CANDIDATES))
        tables = [read_table(self.folder / name, CANDIDATE_SCHEMA) for name in (CANDIDATES_FILE, *more)]
        return pa.concat_tables(tables).combine_chunks()

    def pairs(self, split: str) -> PairTable:
        """The labelled comparisons of a split.

        Args:
            split: one of `splits`.

        Returns:
            Its pairs, joined to their latents and utilities.

        Raises:
            DataError: no such split, or a pair names an unknown candidate.
        """
        if split not in self.splits:
            raise DataError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}")
        table = read_table(self.folder / PAIRS_FOLDER / f"{split}.parquet", PAIR_SCHEMA)
        lists: dict[str, Any] = {name: table[name].to_pylist() for name in ("prompt", "chosen", "rejected", "kind")}
        votes: dict[str, Any] = {
            name: table[name].to_numpy() for name in ("votes_chosen", "votes_rejected", "votes_tied")
        }
        places = {side: self._places(lists[side], split) for side in ("chosen", "rejected")}
        rows = self.candidates["latents_row"].to_numpy()
        utility = self.candidates["oracle_utility"].to_numpy(zero_copy_only=False).astype(np.float64)
        return PairTable(
            **lists,
            **votes,
            target=vote_share(votes["votes_chosen"], votes["votes_rejected"]),
            chosen_row=rows[places["chosen"]],
            rejected_row=rows[places["rejected"]],
            chosen_origin=[Origin.from_row(row) for row in table["chosen_origin"].to_pylist()],
            rejected_origin=[Origin.from_row(row) for row in table["rejected_origin"].to_pylist()],
            chosen_utility=utility[places["chosen"]],
            rejected_utility=utility[places["rejected"]],
        )

    def latents(self, rows: Indices) -> Tensor:
        """Latents of the given rows.

        Args:
            rows: of the latents file, `[n]`, in any order, repeats allowed.

        Returns:
            `[n c h w]` float32.

        Raises:
            ValueRangeError: a row that the file does not have.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        outside = (index < 0) | (index >= len(self._latents))
        if outside.any():
            raise ValueRangeError(
                f"row {int(index[outside][0])} of {self.folder / LATENTS_FILE} does not exist; "
                f"rows run from 0 to {len(self._latents) - 1}"
            )
        return self._latents[index].float()

    def preview(self, candidate: str) -> Image.Image:
        """The small picture of a candidate, RGB.

        Args:
            candidate: its id.

        Returns:
            The picture.

        Raises:
            DataError: no such candidate, or it was stored without a preview.
            ImageError: its bytes are no picture.
        """
        place = self._places([candidate], "preview")[0]
        encoded = self.candidates["preview"][int(place)].as_py()
        if encoded is None:
            raise DataError(f"candidate {candidate!r} of {self.folder} has no preview; decode its latents instead")
        try:
            return Image.open(io.BytesIO(encoded)).convert("RGB")
        except OSError as error:
            raise ImageError(f"the preview of {candidate!r} cannot be read ({error}); expected WebP bytes") from error

    def verify(self) -> None:
        """Read everything and check that it is whole.

        Raises:
            DataError: the first fault: a hash, a count, a row out of range, a value that is not finite, a candidate
                missing or named twice, a pair across prompts or of one picture with itself, votes that cannot be.
        """
        for name, expected in self._entry("sha256").items():
            found = sha256_file(self.folder / name)
            if found != expected:
                raise DataError(
                    f"{self.folder / name} has sha256 {found[:12]}..., {INFO_FILE} says {str(expected)[:12]}...; "
                    "the file changed after it was written: fetch or write the folder again"
                )
        self._verify_latents()
        self._verify_candidates()
        for split in self.splits:
            self._verify_pairs(split)

    @cached_property
    def _latents(self) -> Tensor:
        path = self.folder / LATENTS_FILE
        try:
            # Mapped, not read: pages come in as rows are asked for.
            with safe_open(path, framework="pt") as file:
                latents = file.get_tensor("latents")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}); it must hold the tensor 'latents' whole") from error
        if latents.ndim != 4 or not latents.is_floating_point():
            found = f"{latents.dtype} {list(latents.shape)}"
            raise DataError(f"'latents' of {path} must be floating [n c h w], got {found}; write the folder again")
        return latents

    @cached_property
    def _place_of(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.candidates["candidate"].to_pylist())}

    def _places(self, candidates: Sequence[str], where: str) -> npt.NDArray[np.int64]:
        try:
            return np.fromiter((self._place_of[name] for name in candidates), np.int64, len(candidates))
        except KeyError as error:
            raise DataError(
                f"candidate {error.args[0]!r}, asked for by {where}, is in none of the tables of candidates of {self.folder}; "
                "every pair must name known candidates"
            ) from error

    def _entry(self, *path: str) -> dict[str, Any]:
        value: Any = self.info
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            raise DataError(f"{self.folder / INFO_FILE} lacks {'.'.join(path)}; write the folder again")
        return value

    def _expected_files(self) -> list[str]:
        pairs = [f"{PAIRS_FOLDER}/{split}.parquet" for split in self.splits]
        return list(dict.fromkeys([CANDIDATES_FILE, LATENTS_FILE, *pairs, *self._entry("sha256")]))

    def _require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise DataError(f"{self.folder}: {fault}; fetch or write the folder again")

    def _verify_count(self, what: str, found: int, expected: object) -> None:
        self._require(found == expected, f"{found} {what}, but {INFO_FILE} says {expected}")

    def _verify_latents(self) -> None:
        latents = self._latents
        self._verify_count("latents", len(latents), self._entry("counts").get("latents"))
        found, expected = list(latents.shape[1:]), self._entry("backbone").get("latent_shape")
        self._require(found == expected, f"latents are {found}, {INFO_FILE} says {expected}")
        for start in range(0, len(latents), 1024):  # the file may be larger than the memory
            finite = torch.isfinite(latents[start : start + 1024]).flatten(1).all(dim=1)
            first = start + int((~finite).nonzero()[0]) if not finite.all() else None
            self._require(first is None, f"latents row {first} has a value that is not finite")

    def _verify_candidates(self) -> None:
        self._verify_count("candidates", len(self.candidates), self._entry("counts").get("candidates"))
        self._require(len(self._place_of) == len(self.candidates), "two candidates have one id")
        rows = self.candidates["latents_row"].to_numpy()
        outside = (rows < 0) | (rows >= len(self._latents))
        self._require(
            not outside.any(),
            f"latents_row {rows[outside][:1].tolist()} lies outside the {len(self._latents)} rows of {LATENTS_FILE}",
        )
        utility = np.array([u for u in self.candidates["oracle_utility"].to_pylist() if u is not None])
        self._require(bool(np.isfinite(utility).all()), "an oracle_utility is not finite")

    def _verify_pairs(self, split: str) -> None:
        table = self.pairs(split)
        self._verify_count(f"pairs in {split}", len(table), self._entry("counts", "pairs")[split])
        votes = np.stack([table.votes_chosen, table.votes_rejected, table.votes_tied])
        self._require(not (votes < 0).any(), f"{split} has a negative count of votes")
        by_more = bool((table.votes_chosen >= table.votes_rejected).all())
        self._require(by_more, f"{split} has a pair chosen by fewer votes")
        self._require(bool((votes.sum(axis=0) > 0).all()), f"{split} has a pair on which nobody voted")
        prompts = self.candidates["prompt"].to_pylist()
        for prompt, chosen, rejected in zip(table.prompt, table.chosen, table.rejected, strict=True):
            self._require(chosen != rejected, f"{split} compares {chosen!r} with itself")
            asked = {prompts[self._place_of[chosen]], prompts[self._place_of[rejected]]}
            self._require(asked == {prompt}, f"{split} compares {chosen!r} and {rejected!r} across prompts")


def vote_share(votes_chosen: npt.NDArray[np.int32], votes_rejected: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """`votes_chosen / (votes_chosen + votes_rejected)`, 0.5 when nobody decided; ties are no votes."""
    decided = votes_chosen + votes_rejected
    share = votes_chosen / np.maximum(decided, 1)
    return np.where(decided > 0, share, 0.5).astype(np.float32)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table with just the columns of a schema, filled where they must be.

    Raises:
        DataError: it cannot be read, or a column is missing, of another type or has gaps.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); it must be a whole parquet file: write it again") from error
    found = {field.name: field.type for field in table.schema}
    for field in schema:
        if found.get(field.name) != field.type:
            raise DataError(
                f"column {field.name!r} of {path} must be {field.type}, found {found.get(field.name, 'none')}; "
                f"this program reads schema_version {SCHEMA_VERSION}"
            )
        nulls = table[field.name].null_count
        if nulls and not field.nullable:
            raise DataError(f"column {field.name!r} of {path} must be filled, found {nulls} nulls; write it again")
    return table.select(schema.names)
