"""Leaves the record of a request and gives its lease back, whatever becomes of the request itself."""

import asyncio
from collections.abc import Coroutine

import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.router.app.call import Run
from services.router.domain.facts import Record, Refused, RequestFinished
from services.router.domain.outcome import FinishReason, Usage
from services.router.ports import AuditPort, MeterPort, Placement, SchedulerPort

_log = structlog.get_logger(__name__)


class Accounting:
    """Runs the bookkeeping in tasks of its own, so that a cancelled request still leaves its record.

    A step that fails is counted and logged, and changes nothing for the caller: the lease expires by itself, and the
    worker's own usage record is what is billed.
    """

    def __init__(self, *, audit: AuditPort, scheduler: SchedulerPort, meter: MeterPort, clock: Clock) -> None:
        self._audit = audit
        self._scheduler = scheduler
        self._meter = meter
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def refused(self, run: Run, error: DownstackError) -> None:
        """Record that the request was not accepted or not placed."""
        if error.reason == Reason.JOURNAL_FULL:
            return
        fact = Refused(code=error.code.value, reason=error.reason.value, method=run.call.method)
        await self._shielded(self._step("refused", self._audit.record(_record(run, fact))))

    async def closed(self, run: Run) -> None:
        """Record the end of a placed request and release its last lease."""
        await self._shielded(self._close(run))

    def abandon(self, run: Run, placement: Placement) -> None:
        """Release the lease of a failed attempt without waiting for it."""
        self._spawn(self._release(run, placement, FinishReason.ERROR, Usage()))

    async def drain(self) -> None:
        """Wait for all that is still being written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _close(self, run: Run) -> None:
        fact = run.finished_fact(self._clock.monotonic())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._step("finished", self._audit.record(_record(run, fact))))
            if run.placement is not None:
                group.create_task(self._release(run, run.placement, run.finish_reason, run.usage))

    async def _release(self, run: Run, placement: Placement, finish_reason: FinishReason, usage: Usage) -> None:
        release = self._scheduler.release(
            run.call.identity,
            lease_id=placement.lease_id,
            finish_reason=finish_reason,
            usage=usage,
        )
        await self._step("release", release)

    async def _step(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except DownstackError as error:
            self._meter.accounting_failed(name)
            _log.warning("accounting failed", step=name, reason=error.reason.value)

    async def _shielded(self, work: Coroutine[None, None, None]) -> None:
        await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _record(run: Run, fact: Refused | RequestFinished) -> Record:
    return Record(run.call.subject(run.spec.conversation_id), fact)
