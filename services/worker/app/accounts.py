"""The one usage record that a lease ends in, durable before anybody hears of the end."""

import asyncio
from typing import Protocol

import structlog
from downstack.events.v1.events_pb2 import UsageRecorded
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.usage_pb2 import FinishReason, Timings, TokenUsage, UsageSource
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import DownstackError
from services.kit.events.event import Event, usage_event
from services.kit.pricing import cost_of
from services.worker.app import metrics
from services.worker.domain.leases import Counts

_log = structlog.get_logger()
_RETRY_S = 1.0


class Journal(Protocol):
    """Where events become durable: the kit's outbox, or memory in a test."""

    def check_open(self) -> None: ...

    async def append(self, *events: Event) -> None: ...


class Accounts:
    """Writes the usage records of one worker."""

    def __init__(self, journal: Journal, *, worker_id: str, engine: str) -> None:
        self._journal = journal
        self._source = f"downstack/worker/{worker_id}"
        self._engine = engine

    def check_open(self) -> None:
        """Raises DownstackError JOURNAL_FULL where new work could not be accounted for."""
        self._journal.check_open()

    def record(
        self,
        grant: LeaseGrant,
        *,
        counts: Counts,
        finish_reason: "FinishReason.ValueType",
        timings: Timings,
        started_at: float,
        finished_at: float,
    ) -> UsageRecorded:
        """The record of a lease that ended here."""
        usage = token_usage(counts, retrieved=grant.retrieved_tokens)
        whole = finish_reason in (FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH)
        return UsageRecorded(
            grant=grant,
            usage=usage,
            cost=cost_of(grant.price, usage),
            finish_reason=finish_reason,
            source=UsageSource.USAGE_SOURCE_ENGINE if whole else UsageSource.USAGE_SOURCE_PARTIAL,
            timings=timings,
            started_at=_timestamp(started_at),
            finished_at=_timestamp(finished_at),
            engine=self._engine,
        )

    async def commit(self, record: UsageRecorded) -> None:
        """Makes the record durable. Raises DownstackError JOURNAL_FULL."""
        await self._journal.append(usage_event(record, source=self._source))

    async def commit_until_done(self, record: UsageRecorded) -> None:
        """Makes the record durable, however long the outbox refuses it."""
        while True:
            try:
                await self.commit(record)
            except DownstackError as error:
                metrics.UNRECORDED.inc()
                _log.error("usage_not_recorded", lease_id=record.grant.lease_id, reason=error.reason)
                await asyncio.sleep(_RETRY_S)
            else:
                return


def token_usage(counts: Counts, *, retrieved: int = 0) -> TokenUsage:
    """Counts on the wire; what is not known stays absent."""
    usage = TokenUsage(
        input_total=counts.input_total,
        input_cached=counts.input_cached,
        output_total=counts.output_total,
        output_delivered=counts.output_delivered,
    )
    if counts.input_total is not None and retrieved:
        usage.retrieved_context = min(retrieved, counts.input_total)
    return usage


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp
