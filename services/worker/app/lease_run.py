"""One lease from its ticket to its usage record, whatever becomes of its reader."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import structlog
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.stream_pb2 import Finished, Started
from downstack.types.v1.usage_pb2 import FinishReason, Timings
from downstack.worker.v1.worker_pb2 import GenerateResponse

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.worker.app import metrics
from services.worker.app.accounts import Accounts
from services.worker.app.outlet import Outlet, OutletLimits
from services.worker.domain.leases import Counts, Phase
from services.worker.domain.pace import Pace
from services.worker.domain.sampling import Sampling
from services.worker.ports import Ending, Engine, EngineOutput

_log = structlog.get_logger()
# An engine that has not ended a request after the last of these is not waited for.
_ABORT_PATIENCE_S = (0.1, 0.4, 1.5, 3.0)
_DEADLINE_SLACK_S = 0.1


class Stop(Enum):
    """Why a lease is ended before its answer is."""

    READER_GONE = "reader_gone"
    DEADLINE = "deadline"
    REVOKED = "revoked"
    TOO_SLOW = "too_slow"
    DRAINING = "draining"
    ENGINE_LOST = "engine_lost"


_FINISH_OF_STOP = {
    Stop.READER_GONE: FinishReason.FINISH_REASON_CANCELLED,
    Stop.DEADLINE: FinishReason.FINISH_REASON_DEADLINE,
    Stop.REVOKED: FinishReason.FINISH_REASON_CANCELLED,
    Stop.TOO_SLOW: FinishReason.FINISH_REASON_CANCELLED,
    Stop.DRAINING: FinishReason.FINISH_REASON_ERROR,
    Stop.ENGINE_LOST: FinishReason.FINISH_REASON_ERROR,
}
_ERROR_OF_STOP = {
    Stop.READER_GONE: (Reason.CLIENT_CANCELLED, "The caller has gone."),
    Stop.DEADLINE: (Reason.DEADLINE_IN_GENERATION, "The deadline passed before the answer was complete."),
    Stop.REVOKED: (Reason.CLIENT_CANCELLED, "The lease was cancelled."),
    Stop.TOO_SLOW: (Reason.CLIENT_TOO_SLOW, "The answer was not read for too long."),
    Stop.DRAINING: (Reason.DRAINING, "This worker is leaving."),
    Stop.ENGINE_LOST: (Reason.ENGINE_DEAD, "The engine was lost."),
}
_FINISH_OF_ENDING = {
    Ending.STOP: FinishReason.FINISH_REASON_STOP,
    Ending.LENGTH: FinishReason.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True)
class Work:
    """What a lease asks of the engine.

    Attributes:
        grant: What was granted.
        priority: The engine's priority; the lowest goes first.
        deadline_s: The time that is left. None: no deadline.
    """

    grant: LeaseGrant
    prompt: Sequence[int]
    sampling: Sampling
    priority: int
    deadline_s: float | None


@dataclass(frozen=True)
class Desk:
    """What a run works with, the same for all runs of a worker.

    Attributes:
        pace: How often a stream gets a frame.
        advance: Told of each phase that a lease reaches.
    """

    engine: Engine
    accounts: Accounts
    clock: Clock
    limits: OutletLimits
    pace: Pace
    advance: Callable[[str, Phase, Counts], None]


class LeaseRun:
    """Runs one lease. `run` is a task of the worker, `frames` is read by the RPC; neither waits for the other."""

    def __init__(self, work: Work, desk: Desk) -> None:
        self._work = work
        self._desk = desk
        self._outlet = Outlet(desk.limits, desk.pace, on_stall=self._on_stall)
        self._received = desk.clock.monotonic()
        self._started_at = desk.clock.now()
        self._stop: Stop | None = None
        self._reading: asyncio.Task[None] | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._counts = Counts()
        self._timings = Timings(queue_ms=work.grant.queue_ms)
        self._first: float | None = None
        self._finish: FinishReason.ValueType = FinishReason.FINISH_REASON_ERROR
        self._finished: Finished | None = None

    @property
    def lease_id(self) -> str:
        return self._work.grant.lease_id

    def stop(self, cause: Stop) -> None:
        """Ends the lease at once. The first cause counts; after the end it changes nothing."""
        if self._reading is not None and self._reading.done():
            return
        if self._stop is None:
            self._stop = cause
            self._aborting = asyncio.create_task(self._abort())
        if cause is Stop.ENGINE_LOST and self._reading is not None:
            # There is nothing left that could acknowledge an abort.
            self._reading.cancel()

    async def run(self) -> None:
        """From the engine to the usage record. Never raises for what happens to the request."""
        loop = asyncio.get_running_loop()
        left = self._work.deadline_s
        timer = loop.call_later(left, self.stop, Stop.DEADLINE) if left is not None else None
        self._reading = asyncio.create_task(self._read_engine())
        if self._stop is not None:
            self._reading.cancel()
        await asyncio.wait([self._reading])
        if timer is not None:
            timer.cancel()
        error = self._outcome(self._reading)
        await self._settle(error)

    async def frames(self) -> AsyncGenerator[GenerateResponse, None]:
        """The stream for the reader. Leaving it early stops the lease."""
        grant, sequence = self._work.grant, 0
        started = Started(
            request_id=grant.request_id,
            model=grant.model,
            worker_id=grant.worker_id,
            prompt_tokens=len(self._work.prompt),
            lease_id=grant.lease_id,
        )
        try:
            yield GenerateResponse(started=started, sequence=sequence)
            async with aclosing(self._outlet.deltas()) as deltas:
                async for delta in deltas:
                    sequence += 1
                    metrics.FRAMES.inc()
                    yield GenerateResponse(delta=delta, sequence=sequence)
            yield GenerateResponse(finished=self._finished, sequence=sequence + 1)
        finally:
            self.stop(Stop.DEADLINE if self._deadline_is_near() else Stop.READER_GONE)

    async def _read_engine(self) -> None:
        grant = self._work.grant
        outputs = self._desk.engine.generate(
            self._work.prompt,
            self._work.sampling,
            request_id=grant.lease_id,
            cache_salt=grant.cache_salt,
            priority=self._work.priority,
            adapter=grant.adapter,
        )
        async for output in outputs:
            self._note(output)
            self._outlet.put(output)

    def _note(self, output: EngineOutput) -> None:
        cached = self._counts.input_cached if output.cached_tokens is None else output.cached_tokens
        began = self._counts.input_total is not None or output.prefill_began or bool(output.token_ids)
        self._counts = Counts(
            input_total=len(self._work.prompt) if began else None,
            input_cached=cached,
            output_total=self._counts.output_total + len(output.token_ids),
        )
        if output.queue_ms is not None:
            self._timings.engine_queue_ms = output.queue_ms
        if output.prefill_ms is not None:
            self._timings.prefill_ms = output.prefill_ms
        if output.ending in _FINISH_OF_ENDING:
            self._finish = _FINISH_OF_ENDING[output.ending]
        if self._first is None and output.token_ids:
            self._first = self._desk.clock.monotonic()
            metrics.TTFT.observe(self._first - self._received)
            self._desk.advance(self.lease_id, Phase.DECODING, self._counts)

    def _outcome(self, reading: asyncio.Task[None]) -> DownstackError | None:
        """What the reader gets instead of Finished, and the reason of the record."""
        failure = None if reading.cancelled() else reading.exception()
        if self._stop is not None:
            self._finish = _FINISH_OF_STOP[self._stop]
            reason, message = _ERROR_OF_STOP[self._stop]
            return DownstackError(reason, message)
        if isinstance(failure, DownstackError):
            self._finish = FinishReason.FINISH_REASON_ERROR
            return failure
        if failure is not None or self._finish == FinishReason.FINISH_REASON_ERROR:
            self._finish = FinishReason.FINISH_REASON_ERROR
            _log.error("engine_failed_request", lease_id=self.lease_id, exc_info=failure)
            return DownstackError(Reason.INTERNAL, "The engine failed with this request.")
        return None

    async def _settle(self, error: DownstackError | None) -> None:
        """The record first, then the end of the stream and of the lease."""
        delivered = self._outlet.delivered if error is not None else None
        counts = Counts(
            self._counts.input_total, self._counts.input_cached, self._counts.output_total, output_delivered=delivered
        )
        record = self._desk.accounts.record(
            self._work.grant,
            counts=counts,
            finish_reason=self._finish,
            timings=self._measured(),
            started_at=self._started_at,
            finished_at=self._desk.clock.now(),
        )
        try:
            await self._desk.accounts.commit(record)
        except DownstackError as refusal:
            self._outlet.close(error or refusal)
            await self._desk.accounts.commit_until_done(record)
        usage = record.usage
        usage.output_delivered = usage.output_total
        self._finished = Finished(finish_reason=self._finish, usage=usage, cost=record.cost, timings=record.timings)
        self._outlet.close(error)
        self._desk.advance(self.lease_id, Phase.FINISHED, counts)
        _count(self._finish, counts)

    def _measured(self) -> Timings:
        now, first = self._desk.clock.monotonic(), self._first
        self._timings.total_ms = (now - self._received) * 1000
        if first is not None:
            self._timings.ttft_ms = (first - self._received) * 1000
            if self._counts.output_total > 1:
                self._timings.tpot_ms = (now - first) * 1000 / (self._counts.output_total - 1)
        return self._timings

    async def _abort(self) -> None:
        """Repeats the abort: one that comes before the request has reached the engine is lost."""
        for patience_s in _ABORT_PATIENCE_S:
            if self._reading is None:
                return
            await self._desk.engine.abort([self.lease_id])
            await asyncio.wait([self._reading], timeout=patience_s)
            if self._reading.done():
                return
        if self._reading is not None:
            self._reading.cancel()

    def _deadline_is_near(self) -> bool:
        """A caller's clock may be a little ahead: it goes away at the deadline just before our own timer."""
        left = self._work.deadline_s
        return left is not None and self._desk.clock.monotonic() - self._received >= left - _DEADLINE_SLACK_S

    def _on_stall(self) -> None:
        metrics.SLOW_READERS.inc()
        self.stop(Stop.TOO_SLOW)


def _count(finish: "FinishReason.ValueType", counts: Counts) -> None:
    metrics.LEASES.labels(FinishReason.Name(finish).removeprefix("FINISH_REASON_").lower()).inc()
    cached = counts.input_cached or 0
    metrics.TOKENS.labels("input").inc((counts.input_total or 0) - cached)
    metrics.TOKENS.labels("cached").inc(cached)
    metrics.TOKENS.labels("output").inc(counts.output_total)
