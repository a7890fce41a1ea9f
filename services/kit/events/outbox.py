"""Events that are durable on this machine and not yet in Kafka."""

import asyncio
import contextlib
import fcntl
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from services.kit.clock import Clock, SystemClock
from services.kit.errors import DownstackError, Reason
from services.kit.events.event import MAX_PAYLOAD_BYTES, Event
from services.kit.events.journal import Entry, Journal, JournalError, size_of
from services.kit.events.metrics import OUTBOX_AGE, OUTBOX_BYTES, OUTBOX_DEPTH, OUTBOX_REFUSALS
from services.kit.events.writer import JournalWriter

# New work is refused this much before the bound, so that work under way can still be accounted for.
_RESERVE = 0.1
_CLOSE_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 5.0


class Outbox:
    """A bounded queue on disk, of one process: its services append to it, its relay empties it.

    What an earlier process left in the file is there again after `open`.
    """

    def __init__(self, journal: Journal, *, max_events: int, max_bytes: int, clock: Clock) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._clock = clock
        self._depth, self._bytes = journal.totals()
        self._oldest_at = journal.oldest()
        self._writable = True
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self._writer = JournalWriter(journal)
        self._count(0, 0)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, path: Path, *, max_events: int, max_bytes: int, clock: Clock | None = None
    ) -> AsyncIterator["Outbox"]:
        """Open the file, or make it. Raises JournalError: damaged, of another version, held by another process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path):
            outbox = cls(Journal(path), max_events=max_events, max_bytes=max_bytes, clock=clock or SystemClock())
            OUTBOX_AGE.set_function(lambda: outbox.oldest_age_s)
            try:
                yield outbox
            finally:
                await outbox._writer.close(timeout_s=_CLOSE_TIMEOUT_S)

    @property
    def depth(self) -> int:
        return self._depth

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def oldest_age_s(self) -> float:
        """The age of the oldest event, 0 for an empty outbox."""
        return max(0.0, self._clock.now() - self._oldest_at) if self._oldest_at is not None else 0.0

    def check_open(self) -> None:
        """Return if new work may begin, else raise JOURNAL_FULL: its events might find no room."""
        share = 1 - _RESERVE
        if not self._writable or self._depth >= self._max_events * share or self._bytes >= self._max_bytes * share:
            raise _full()

    async def append(self, *events: Event) -> None:
        """Return when the events are on disk, all or none of them, in this order.

        A cancelled call may leave them written. Raises JOURNAL_FULL over the bound or where the disk refuses, and
        MESSAGE_TOO_LARGE for an event that Kafka would never take.
        """
        if any(len(event.payload) > MAX_PAYLOAD_BYTES for event in events):
            raise DownstackError(Reason.MESSAGE_TOO_LARGE, f"An event is larger than {MAX_PAYLOAD_BYTES} bytes.")
        size = sum(size_of(event) for event in events)
        if self._depth + len(events) > self._max_events or self._bytes + size > self._max_bytes:
            raise _full()
        self._count(len(events), size)
        now = self._clock.now()
        written = self._writer.submit(lambda journal: journal.append(events, now=now))
        written.add_done_callback(lambda done: self._appended(done, len(events), size, now))
        try:
            await asyncio.shield(written)
        except sqlite3.Error:
            raise _full() from None

    def _appended(self, done: "asyncio.Future[None]", count: int, size: int, now: float) -> None:
        self._writable = done.exception() is None
        if not self._writable:
            self._count(-count, -size)
        elif self._oldest_at is None:
            self._oldest_at = now

    async def read(self, limit: int) -> list[Entry]:
        """The oldest entries, in the order they were appended."""
        return await self._writer.submit(lambda journal: journal.read(limit))

    async def delete(self, entries: Sequence[Entry]) -> None:
        """Forget entries that Kafka has."""
        seqs = [entry.seq for entry in entries]

        def work(journal: Journal) -> float | None:
            journal.delete(seqs)
            return journal.oldest()

        self._oldest_at = await self._writer.submit(work)
        self._count(-len(entries), -sum(entry.size for entry in entries))

    async def until_filled(self) -> None:
        """Return when there is an event to ship."""
        await self._filled.wait()

    async def until_emptied(self) -> None:
        """Return when every event was shipped."""
        await self._emptied.wait()

    def _count(self, events: int, size: int) -> None:
        self._depth += events
        self._bytes += size
        OUTBOX_DEPTH.set(self._depth)
        OUTBOX_BYTES.set(self._bytes)
        now_true, now_false = (self._filled, self._emptied) if self._depth else (self._emptied, self._filled)
        now_true.set()
        now_false.clear()


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep other processes from the file; the kernel lets go of it when this one ends, however it ends."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"Another process has the outbox {path}: give each process a file of its own.") from None
        yield


def _full() -> DownstackError:
    OUTBOX_REFUSALS.inc()
    return DownstackError(
        Reason.JOURNAL_FULL,
        "Events cannot be recorded now, so no new work is taken.",
        retry_after_s=_RETRY_AFTER_S,
    )
