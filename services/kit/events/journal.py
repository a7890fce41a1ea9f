"""The outbox's file: an SQLite table that a commit makes durable. Plain blocking code for one thread."""

import dataclasses
import sqlite3
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

from services.kit.errors import StartupError
from services.kit.events.event import Event

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE events (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  appended_at REAL NOT NULL,
  bytes       INTEGER NOT NULL,
  id TEXT NOT NULL, source TEXT NOT NULL, type TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL,
  payload BLOB NOT NULL, time REAL NOT NULL, subject TEXT NOT NULL, traceparent TEXT NOT NULL
)
"""
_COLUMNS = "id, source, type, topic, key, payload, time, subject, traceparent"
_values = attrgetter(*_COLUMNS.split(", "))
_INSERT = f"INSERT INTO events (appended_at, bytes, {_COLUMNS}) VALUES (?, ?{', ?' * 9})"  # noqa: S608 - our columns
_READ = f"SELECT seq, bytes, {_COLUMNS} FROM events ORDER BY seq LIMIT ?"  # noqa: S608 - the same
# Around each payload: its attributes, the row, and the index.
_OVERHEAD_BYTES = 400


class JournalError(StartupError):
    """The file cannot be used: damaged, held by another process, or of another version."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An event in the journal. `seq` grows in the order of appending; `size` counts against the outbox's bound."""

    seq: int
    size: int
    event: Event


def size_of(event: Event) -> int:
    """The bytes that an event counts for."""
    return len(event.payload) + _OVERHEAD_BYTES


class Journal:
    """Events in the order they were appended. Nothing is durable before `commit` returns."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            # In WAL mode this waits for the disk at each commit; NORMAL would not.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA journal_size_limit=67108864")
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise JournalError(f"The outbox {path} cannot be read: {error}.") from error

    def _prepare(self, path: Path) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._connection.execute("COMMIT")
        elif version != _SCHEMA_VERSION:
            raise JournalError(f"The outbox {path} has version {version}, this Downstack writes {_SCHEMA_VERSION}.")

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def append(self, events: Iterable[Event], *, now: float) -> None:
        rows = [(now, size_of(event), *_values(event)) for event in events]
        self._connection.executemany(_INSERT, rows)

    def read(self, limit: int) -> list[Entry]:
        """The oldest entries."""
        rows = self._connection.execute(_READ, (limit,)).fetchall()
        return [Entry(seq=row[0], size=row[1], event=Event(*row[2:])) for row in rows]

    def delete(self, seqs: Sequence[int]) -> None:
        self._connection.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq in seqs])

    def totals(self) -> tuple[int, int]:
        """The number of entries, and their bytes."""
        count, size = self._connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM events").fetchone()
        return int(count), int(size)

    def oldest(self) -> float | None:
        """When the oldest entry was appended, in seconds since 1970."""
        row = self._connection.execute("SELECT appended_at FROM events ORDER BY seq LIMIT 1").fetchone()
        return float(row[0]) if row is not None else None

    def close(self) -> None:
        self._connection.close()
