"""Write a preference folder: all of it, or nothing."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from dina_lrm.data.folder import PreferenceData, read_table
from dina_lrm.data.schema import (
    CANDIDATE_SCHEMA,
    CANDIDATES_FILE,
    INFO_FILE,
    LATENTS_FILE,
    MORE_CANDIDATES,
    PAIR_SCHEMA,
    PAIRS_FOLDER,
    SCHEMA_VERSION,
    Candidate,
    Origin,
    PreferencePair,
)
from dina_lrm.errors import DataError
from dina_lrm.runtime.files import atomic_folder, restore_folder, sha256_file

_ROWS_AT_ONCE = 4096  # of the table of candidates: their previews are in memory


@dataclass(frozen=True)
class LatentParts:
    """Latents that are too many to be held at once.

    Attributes:
        shape: of all of them, `n c h w`.
        parts: `[m c h w]` each, in order.
    """

    shape: tuple[int, ...]
    parts: Iterable[Tensor]

    @staticmethod
    def of(latents: Tensor) -> LatentParts:
        """A tensor as its one part."""
        return LatentParts(tuple(latents.shape), [latents])


def refuse_foreign_data(folder: Path) -> None:
    """Only what a writer of preferences made may be replaced by one.

    Raises:
        DataError: naming the first file that is somebody's own.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        ours = name.as_posix() in (INFO_FILE, LATENTS_FILE) or (
            path.suffix == ".parquet" and (name.parts[0] == PAIRS_FOLDER or name.name.startswith("candidates"))
        )
        if not path.is_dir() and not ours:
            raise DataError(
                f"{folder} holds {name}, which is no part of a preference folder and would be lost; name another"
            )


def write_preference_data(
    folder: str | Path,
    candidates: Iterable[Candidate],
    latents: Tensor | LatentParts,
    pairs_by_split: Mapping[str, Sequence[PreferencePair]],
    name: str,
    backbone: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> PreferenceData:
    """Write a preference folder under another name, verify it, then rename it: a killed writer leaves the old one.

    Args:
        folder: where; a preference folder that lies there is replaced as a whole.
        candidates: every picture, in any order; looked at once.
        latents: `[n c h w]`, standardised as the backbone takes them, or parts of it; stored in half precision.
        pairs_by_split: comparisons by the name of their split.
        name: of the data set.
        backbone: what made the latents; anything that tells one backbone from another. Latent shape is added.
        about: anything else worth keeping: seeds, formulas, counts.

    Returns:
        The folder, opened.

    Raises:
        DataError: the parts do not fit together, or the folder holds other things; nothing was written.
    """
    refuse_foreign_data(Path(folder))
    given = LatentParts.of(latents) if isinstance(latents, Tensor) else latents
    with atomic_folder(folder) as staged:
        _write_latents(staged / LATENTS_FILE, given)
        (staged / PAIRS_FOLDER).mkdir()
        origins = _write_candidates(staged / CANDIDATES_FILE, iter(candidates))
        for split, pairs in pairs_by_split.items():
            pq.write_table(_pair_table(pairs, origins), staged / PAIRS_FOLDER / f"{split}.parquet", compression="zstd")
        counts = {
            "candidates": len(origins),
            "latents": given.shape[0],
            "pairs": {split: len(pairs) for split, pairs in pairs_by_split.items()},
        }
        info = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "backbone": {"latent_shape": list(given.shape[1:]), **(backbone or {})},
            "counts": counts,
            "about": dict(about or {}),
        }
        _finish(staged, info)
    return PreferenceData.open(folder)


def extend_preference_data(
    folder: str | Path,
    table: str,
    candidates: Sequence[Candidate],
    pairs_by_split: Mapping[str, Sequence[PreferencePair]],
) -> PreferenceData:
    """Add prompts for latents that a preference folder has: what stood there stays, and the folder is replaced whole.

    Args:
        folder: to extend.
        table: name of the new table of candidates; it is written as `candidates-TABLE.parquet`.
        candidates: whose `latents_row` is of the latents that are there.
        pairs_by_split: comparisons to append to splits, or new splits; they may name old candidates too.

    Returns:
        The folder, opened.

    Raises:
        DataError: the folder is damaged, the table is there already, or the parts do not fit together; the folder is as
            it was.
    """
    restore_folder(folder)
    old = PreferenceData.open(folder)
    if not table.isidentifier():
        raise DataError(f"a table's name must be letters, digits and underscores, got {table!r}")
    name = MORE_CANDIDATES.replace("*", table)
    if (old.folder / name).exists():
        raise DataError(f"{old.folder} has a table {name}; choose another name, or write the folder afresh")
    old.verify()
    with atomic_folder(folder) as staged:
        for known_file in old.info["sha256"]:
            (staged / known_file).parent.mkdir(exist_ok=True)
            shutil.copy2(old.folder / known_file, staged / known_file)
        pq.write_table(_candidate_table(candidates), staged / name, compression="zstd")
        known = old.candidates.select(["candidate", "origin"]).to_pylist()
        origins = {row["candidate"]: Origin.from_row(row["origin"]) for row in known}
        origins |= {c.candidate: c.origin for c in candidates}
        counts = {**old.info["counts"], "candidates": len(old.candidates) + len(candidates)}
        for split, pairs in pairs_by_split.items():
            path = staged / PAIRS_FOLDER / f"{split}.parquet"
            parts = [read_table(path, PAIR_SCHEMA)] if split in old.splits else []
            whole = pa.concat_tables([*parts, _pair_table(pairs, origins)])
            pq.write_table(whole, path, compression="zstd")
            counts["pairs"] = {**counts["pairs"], split: len(whole)}
        _finish(staged, {**old.info, "counts": counts})
    return PreferenceData.open(folder)


def _finish(staged: Path, info: dict[str, Any]) -> None:
    """Write `dataset.json` with the hash of every other file, and check the folder whole."""
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path.name != INFO_FILE)
    hashes = {path.relative_to(staged).as_posix(): sha256_file(path) for path in files}
    (staged / INFO_FILE).write_text(json.dumps({**info, "sha256": hashes}, indent=2) + "\n")
    PreferenceData.open(staged).verify()


def _write_latents(path: Path, latents: LatentParts) -> None:
    """A safetensors file of one tensor, part after part: the file may be larger than the memory."""
    tensor = {"dtype": "F16", "shape": list(latents.shape), "data_offsets": [0, 2 * math.prod(latents.shape)]}
    header = json.dumps({"latents": tensor}).encode()
    header += b" " * (-len(header) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in latents.parts:
            if tuple(part.shape[1:]) != latents.shape[1:]:
                raise DataError(f"latents must all be {list(latents.shape[1:])}, got {list(part.shape[1:])}")
            file.write(part.detach().cpu().half().contiguous().numpy().tobytes())
            written += len(part)
    if written != latents.shape[0]:
        raise DataError(f"{latents.shape[0]} latents were announced, {written} came")


def _write_candidates(path: Path, candidates: Iterator[Candidate]) -> dict[str, Origin | None]:
    """The table of candidates; returns where each came from."""
    origins: dict[str, Origin | None] = {}
    count = 0
    with pq.ParquetWriter(path, CANDIDATE_SCHEMA, compression="zstd") as writer:
        while some := list(islice(candidates, _ROWS_AT_ONCE)):
            writer.write_table(_candidate_table(some))
            origins |= {c.candidate: c.origin for c in some}
            count += len(some)
    if count != len(origins):
        raise DataError(f"candidates must have distinct ids, {count} have {len(origins)}: two candidates have one id")
    return origins


def _candidate_table(candidates: Sequence[Candidate]) -> pa.Table:
    rows = [vars(c) | {"origin": c.origin and c.origin.to_row()} for c in candidates]
    return pa.Table.from_pylist(rows, CANDIDATE_SCHEMA)


def _pair_table(pairs: Sequence[PreferencePair], origins: Mapping[str, Origin | None]) -> pa.Table:
    rows = []
    for pair in pairs:
        row: dict[str, Any] = asdict(pair)
        for side in ("chosen", "rejected"):
            if row[side] not in origins:
                raise DataError(
                    f"a pair of {pair.prompt!r} names the {side} candidate {row[side]!r}, which is not given; "
                    "pass every candidate that a pair names"
                )
            origin = origins[row[side]]
            row[f"{side}_origin"] = origin and origin.to_row()
        rows.append(row)
    return pa.Table.from_pylist(rows, PAIR_SCHEMA)
