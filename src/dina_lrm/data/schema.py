"""The columns of a preference folder, and where a candidate came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
INFO_FILE = "dataset.json"
CANDIDATES_FILE = "candidates.parquet"
MORE_CANDIDATES = "candidates-*.parquet"  # further tables of candidates of the same latents
LATENTS_FILE = "latents.safetensors"
PAIRS_FOLDER = "pairs"

ORIGIN_TYPE = pa.struct(
    [("kind", pa.string()), ("concept", pa.string()), ("style", pa.string()), ("detail", pa.string())]
)

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("candidate", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("origin", ORIGIN_TYPE),
        pa.field("latents_row", pa.int64(), nullable=False),
        pa.field("preview", pa.binary()),
        pa.field("oracle_utility", pa.float64()),
    ]
)

PAIR_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("chosen", pa.string(), nullable=False),
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("votes_chosen", pa.int32(), nullable=False),
        pa.field("votes_rejected", pa.int32(), nullable=False),
        pa.field("votes_tied", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("chosen_origin", ORIGIN_TYPE),
        pa.field("rejected_origin", ORIGIN_TYPE),
    ]
)


@dataclass(frozen=True)
class Origin:
    """Where a candidate came from.

    Attributes:
        kind: how it was made: real, damaged, generator, photograph, upload ...
        concept: what it shows, empty if nobody knows.
        style: how it is drawn, empty if nobody knows.
        detail: what else tells it apart: damage and strength, sampler steps and guidance.
    """

    kind: str
    concept: str = ""
    style: str = ""
    detail: str = ""

    def to_row(self) -> dict[str, str]:
        """As a value of an `ORIGIN_TYPE` column."""
        return {"kind": self.kind, "concept": self.concept, "style": self.style, "detail": self.detail}

    @staticmethod
    def from_row(row: dict[str, Any] | None) -> Origin | None:
        """From a value of an `ORIGIN_TYPE` column; None stays None."""
        return None if row is None else Origin(**{name: value or "" for name, value in row.items()})


@dataclass(frozen=True)
class Candidate:
    """One picture that was made for a prompt.

    Attributes:
        candidate: its id, unique in the folder.
        prompt: what was asked for.
        latents_row: its row of the latents.
        origin: where it came from.
        preview: WebP bytes of what the latents decode to, or None.
        oracle_utility: the known truth, or None where there is no oracle.
    """

    candidate: str
    prompt: str
    latents_row: int
    origin: Origin | None = None
    preview: bytes | None = None
    oracle_utility: float | None = None


@dataclass(frozen=True)
class PreferencePair:
    """A labelled comparison of two candidates of one prompt.

    Attributes:
        prompt: what was asked for.
        chosen: id of the candidate with more votes; of either at equal votes.
        rejected: id of the other.
        votes_chosen: how many preferred `chosen`.
        votes_rejected: how many preferred `rejected`.
        votes_tied: how many saw no difference.
        kind: what tells the two apart: concept, style, damage, generator, mixed.
    """

    prompt: str
    chosen: str
    rejected: str
    votes_chosen: int
    votes_rejected: int
    votes_tied: int = 0
    kind: str = "mixed"
