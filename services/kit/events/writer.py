"""The thread that owns the journal, and makes many appends durable with one wait for the disk."""

import asyncio
import dataclasses
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from services.kit.events.journal import Journal
from services.kit.events.metrics import OUTBOX_COMMIT

_MAX_GROUP = 1000
# While work comes faster than the disk confirms it, a commit waits this long for more to share its cost.
_GATHER_S = 0.002
T = TypeVar("T")


@dataclasses.dataclass
class _Task:
    work: Callable[[Journal], Any]
    done: asyncio.Future[Any]
    outcome: Any = None


class JournalWriter:
    """Runs work on the journal in the order it is submitted; all that waits goes into one transaction."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()  # bounded by the outbox
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Journal], T]) -> "asyncio.Future[T]":
        """The outcome of `work`, once it is durable. Raises sqlite3.Error in the future where it is not."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._tasks.put(_Task(work, done))
        return done

    async def close(self, *, timeout_s: float) -> None:
        """Finish what was submitted, and close the journal."""
        self._tasks.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self) -> None:
        while True:
            group, last = self._next_group()
            self._busy = len(group) > 1
            if group:
                error = self._commit(group)
                self._loop.call_soon_threadsafe(_settle, group, error)
            if last:
                self._journal.close()
                return

    def _next_group(self) -> tuple[list[_Task], bool]:
        group: list[_Task] = []
        task = self._tasks.get()
        if self._busy:
            time.sleep(_GATHER_S)
        while task is not None:
            group.append(task)
            if len(group) == _MAX_GROUP:
                return group, False
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Task]) -> sqlite3.Error | None:
        begun = time.perf_counter()
        try:
            self._journal.begin()
            for task in group:
                task.outcome = task.work(self._journal)
            self._journal.commit()
        except sqlite3.Error as error:
            self._journal.rollback()
            return error
        OUTBOX_COMMIT.observe(time.perf_counter() - begun)
        return None


def _settle(group: list[_Task], error: sqlite3.Error | None) -> None:
    for task in group:
        if task.done.cancelled():
            continue
        if error is not None:
            task.done.set_exception(error)
        else:
            task.done.set_result(task.outcome)
