"""Between the ledger's rows and protobuf messages."""

from downstack.events.v1.events_pb2 import AuditRecorded, UsageRecorded
from downstack.scheduler.v1 import ledger_pb2 as pb
from downstack.types.v1.decision_pb2 import Decision
from downstack.types.v1.usage_pb2 import Cost, FinishReason, Timings, UsageSource

from services.scheduler.adapters.reading import usage_of
from services.scheduler.adapters.timeline import seconds_of, stamp_of
from services.scheduler.adapters.writing import usage_message
from services.scheduler.domain.ledger import DecisionEntry, Grouping, Times, UsageEntry, UsageFilter, UsageTotal

GROUPINGS: dict[int, Grouping] = {
    pb.USAGE_GROUP_UNSPECIFIED: Grouping.NOTHING,
    pb.USAGE_GROUP_MODEL: Grouping.MODEL,
    pb.USAGE_GROUP_KEY: Grouping.KEY,
    pb.USAGE_GROUP_DAY: Grouping.DAY,
    pb.USAGE_GROUP_WORKER: Grouping.WORKER,
}
_FINISH, _SOURCE = "FINISH_REASON_", "USAGE_SOURCE_"
_TIMES = ("queue_ms", "engine_queue_ms", "prefill_ms", "ttft_ms", "tpot_ms", "total_ms", "prepare_ms")


def usage_entry_of(record: UsageRecorded) -> UsageEntry:
    """The row of a usage record. Raises ValueError for a reason or source that this version does not know."""
    grant = record.grant
    return UsageEntry(
        lease_id=grant.lease_id,
        request_id=grant.request_id,
        attempt=grant.attempt,
        key_id=grant.key_id,
        model=grant.model,
        requested_model=grant.requested_model,
        worker_id=grant.worker_id,
        worker_epoch=grant.worker_epoch,
        engine=record.engine,
        usage=usage_of(record.usage),
        cost_nano=record.cost.nano_units,
        currency=record.cost.currency or grant.price.currency,
        price_version=record.cost.price_version or grant.price.version,
        finish=_short(FinishReason.Name(record.finish_reason), _FINISH),
        source=_short(UsageSource.Name(record.source), _SOURCE),
        times=_times_of(record.timings),
        gpu_seconds=record.gpu_seconds if record.HasField("gpu_seconds") else None,
        predicted_cached_tokens=grant.predicted_cached_tokens,
        granted_at=seconds_of(grant.granted_at),
        started_at=seconds_of(record.started_at) if record.HasField("started_at") else None,
        finished_at=seconds_of(record.finished_at),
        labels=dict(grant.labels),
    )


def decision_entry_of(record: AuditRecorded) -> DecisionEntry:
    """The row of a decision; its grant is empty where there is none."""
    decision = record.decided
    return DecisionEntry(
        request_id=decision.request_id,
        attempt=decision.attempt,
        lease_id=decision.lease_id,
        decided_at=seconds_of(record.occurred_at),
        payload=decision.SerializeToString(),
        grant=record.grant.SerializeToString(),
    )


def row_message(entry: UsageEntry) -> pb.UsageRow:
    return pb.UsageRow(
        lease_id=entry.lease_id,
        request_id=entry.request_id,
        attempt=entry.attempt,
        key_id=entry.key_id,
        model=entry.model,
        worker_id=entry.worker_id,
        usage=usage_message(entry.usage),
        cost=Cost(nano_units=entry.cost_nano, currency=entry.currency, price_version=entry.price_version),
        finish_reason=FinishReason.Value(_FINISH + entry.finish.upper()),
        source=UsageSource.Value(_SOURCE + entry.source.upper()),
        finished_at=stamp_of(entry.finished_at),
        timings=Timings(**{name: getattr(entry.times, name) for name in _TIMES}),
        labels=entry.labels,
    )


def total_message(total: UsageTotal) -> pb.UsageTotal:
    return pb.UsageTotal(
        group=total.group,
        requests=total.requests,
        rows=total.rows,
        input_tokens=total.input_tokens,
        cached_tokens=total.cached_tokens,
        output_tokens=total.output_tokens,
        cost=Cost(nano_units=total.cost_nano, currency=total.currency),
    )


def decided_message(entry: DecisionEntry) -> pb.DecidedPlacement:
    return pb.DecidedPlacement(decision=Decision.FromString(entry.payload), decided_at=stamp_of(entry.decided_at))


def filter_of(message: pb.UsageFilter) -> UsageFilter:
    since = getattr(message, "from")  # the field's name is a word of Python's
    return UsageFilter(
        since=seconds_of(since) if message.HasField("from") else None,
        until=seconds_of(message.to) if message.HasField("to") else None,
        model=message.model or None,
        key_id=message.key_id or None,
        request_id=message.request_id or None,
    )


def _times_of(message: Timings) -> Times:
    return Times(**{name: getattr(message, name) if message.HasField(name) else None for name in _TIMES})  # type: ignore[arg-type]


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
