"""Votes on disk: SQLite, one row a vote, written through before it is acknowledged."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast, get_args

from dina_lrm.errors import DataError, InputError, WorkError

Choice = Literal["left", "right", "tie", "skip"]
Sampling = Literal["random", "active"]

SCHEMA_VERSION = "1"
BUSY_SECONDS = 30.0
PAGE = 1000  # votes in memory at once, where all are wanted
VARIABLES = 500  # of one statement; SQLite takes 999 at least
_COLUMNS = "pair, voter, prompt, left_candidate, right_candidate, choice, sampling, at"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS votes (
    vote INTEGER PRIMARY KEY AUTOINCREMENT,
    pair TEXT NOT NULL,
    voter TEXT NOT NULL,
    prompt TEXT NOT NULL,
    left_candidate TEXT NOT NULL,
    right_candidate TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN {get_args(Choice)}),
    sampling TEXT NOT NULL CHECK (sampling IN {get_args(Sampling)}),
    at TEXT NOT NULL,
    UNIQUE (pair, voter)
);
CREATE INDEX IF NOT EXISTS votes_by_prompt ON votes (prompt);
CREATE INDEX IF NOT EXISTS votes_by_voter ON votes (voter);
CREATE TABLE IF NOT EXISTS scores (
    model TEXT NOT NULL,
    candidate TEXT NOT NULL,
    utility REAL NOT NULL,
    PRIMARY KEY (model, candidate)
) WITHOUT ROWID;
"""


class AlreadyVotedError(InputError):
    """This voter has chosen otherwise for this pair."""


@dataclass(frozen=True)
class Vote:
    """One answer of one voter.

    Attributes:
        pair: the ticket under which the pair was shown.
        voter: who; empty if nobody said.
        prompt: of both candidates.
        left: id of the candidate that was shown on the left.
        right: id of the other.
        choice: what was chosen.
        sampling: how the pair was picked.
        at: when, ISO 8601 in UTC.
    """

    pair: str
    voter: str
    prompt: str
    left: str
    right: str
    choice: Choice
    sampling: Sampling
    at: str

    @property
    def sides(self) -> tuple[str, str]:
        """Both candidates."""
        return self.left, self.right


class VoteStore:
    """The arena's file. Threads share it, and several servers may.

    `add` returns when the row is on the disk (write-ahead log, synchronous FULL): a process killed after that loses
    nothing, one killed before has not acknowledged.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the file, or make it; its folder too.

        Args:
            path: of the SQLite file.

        Returns:
            The store.

        Raises:
            DataError: the file is something else, or of another schema version.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be opened as an arena's store: {error}") from error
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            store = cls(connection, path)
            version = store.fact("schema_version", SCHEMA_VERSION)
        except (sqlite3.Error, WorkError) as error:
            connection.close()
            raise DataError(f"{path} is no arena's store ({error}); name another file") from error
        if version != SCHEMA_VERSION:
            connection.close()
            raise DataError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
        return store

    @property
    def secret(self) -> str:
        """By which names are sealed, hexadecimal; the file's own, drawn when it was made."""
        return self.fact("secret", secrets.token_hex(32))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def fact(self, name: str, first: str = "") -> str:
        """What the file says of itself.

        Args:
            name: of the fact.
            first: what it is to say from now on, if it says nothing yet.
        """
        with self._held() as connection:
            connection.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, first))
        return str(self._rows("SELECT value FROM facts WHERE name = ?", (name,))[0][0])

    def add(self, vote: Vote) -> bool:
        """Write a vote down.

        Args:
            vote: the answer; the first one of a voter to a pair stands.

        Returns:
            False if the same answer stood there already.

        Raises:
            AlreadyVotedError: another answer stood there.
            WorkError: it could not be written.
        """
        values = tuple(vars(vote).values())
        places = ", ".join("?" * len(values))
        with self._held() as connection:
            written = connection.execute(
                f"INSERT INTO votes ({_COLUMNS}) VALUES ({places}) ON CONFLICT (pair, voter) DO NOTHING", values
            ).rowcount
        if written:
            return True
        stands = self._rows("SELECT choice FROM votes WHERE pair = ? AND voter = ?", (vote.pair, vote.voter))[0][0]
        if stands != vote.choice:
            raise AlreadyVotedError(f"this voter has said {stands!r} to this pair already; the first answer stands")
        return False

    def votes(self, *, voter: str | None = None, prompts: Iterable[str] | None = None) -> list[Vote]:
        """Votes in the order in which they came.

        Args:
            voter: of this one only.
            prompts: on these only.
        """
        select = f"SELECT {_COLUMNS} FROM votes"
        if voter is not None:
            rows = self._rows(f"{select} WHERE voter = ? ORDER BY vote", (voter,))
        elif prompts is not None:
            rows = self._rows_in(f"{select} WHERE prompt IN", list(prompts), "ORDER BY vote")
        else:
            rows = self._rows(f"{select} ORDER BY vote")
        return [_vote(row) for row in rows]

    def pages(self) -> Iterator[list[Vote]]:
        """Every vote in the order in which they came, so many at a time: there may be more than memory holds."""
        last: object = 0
        while rows := self._rows(
            f"SELECT vote, {_COLUMNS} FROM votes WHERE vote > ? ORDER BY vote LIMIT {PAGE}", (last,)
        ):
            yield [_vote(row[1:]) for row in rows]
            last = rows[-1][0]

    def voters(self) -> int:
        """How many have answered."""
        return cast(int, self._rows("SELECT COUNT(DISTINCT voter) FROM votes")[0][0])

    def count(self, voter: str) -> int:
        """How many answers a voter has given."""
        return cast(int, self._rows("SELECT COUNT(*) FROM votes WHERE voter = ?", (voter,))[0][0])

    def candidates(self) -> set[str]:
        """Every candidate that somebody voted on."""
        found = self._rows("SELECT left_candidate FROM votes UNION SELECT right_candidate FROM votes")
        return {str(row[0]) for row in found}

    def utilities(self, model: str, candidates: Sequence[str]) -> dict[str, float]:
        """What a model was found to think of candidates; those it was not asked about are left out."""
        rows = self._rows_in(
            "SELECT candidate, utility FROM scores WHERE model = ? AND candidate IN", candidates, "", model
        )
        return {str(name): cast(float, utility) for name, utility in rows}

    def scored(self, model: str) -> set[str]:
        """Candidates that a model was asked about."""
        return {str(row[0]) for row in self._rows("SELECT candidate FROM scores WHERE model = ?", (model,))}

    def add_utilities(self, model: str, utilities: Mapping[str, float]) -> None:
        """Keep what a model thinks of candidates."""
        rows = [(model, candidate, utility) for candidate, utility in utilities.items()]
        with self._held() as connection:
            connection.execute("BEGIN")
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
            connection.execute("COMMIT")

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):  # where no transaction is open
                    self._connection.execute("ROLLBACK")
                raise WorkError(f"the arena's store {self.path.name} failed: {error}") from error

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._held() as connection:
            return connection.execute(statement, values).fetchall()

    def _rows_in(self, start: str, names: Sequence[str], end: str, *before: object) -> list[tuple[object, ...]]:
        """Rows whose last column named in `start` is one of many names, asked for in parts."""
        found: list[tuple[object, ...]] = []
        for first in range(0, len(names), VARIABLES):
            part = names[first : first + VARIABLES]
            found += self._rows(f"{start} ({', '.join('?' * len(part))}) {end}", (*before, *part))
        return found


def _vote(row: tuple[object, ...]) -> Vote:
    return Vote(*cast("tuple[str, str, str, str, str, Choice, Sampling, str]", row))
