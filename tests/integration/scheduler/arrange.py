"""Makes usage records and decisions as they travel on Kafka."""

from typing import Any

from downstack.events.v1.events_pb2 import AuditRecorded, UsageRecorded
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.decision_pb2 import Decision
from downstack.types.v1.usage_pb2 import Cost, FinishReason, Price, Timings, TokenUsage, UsageSource
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.events.event import Event, ReceivedEvent, audit_event, usage_event

NOON = 1_800_014_400  # 12:00 UTC on a day of 2027
DAY_S = 86_400
COST = 9_007_199_254_740_993  # more than a float can hold exactly


def usage(lease_id: str, tenant_id: str, *, at: int = NOON, source: int = 1, **grant: Any) -> Event:
    """The event of a usage record: 100 tokens in, 40 of them cached, 10 out."""
    fields: dict[str, Any] = {"request_id": f"req_{lease_id}", "attempt": 1, "key_id": "key00001", "model": "m"}
    record = UsageRecorded(
        grant=LeaseGrant(
            lease_id=lease_id,
            tenant_id=tenant_id,
            **{**fields, "worker_id": "w1", "worker_epoch": "e1", "labels": {"team": "a"}, **grant},
            price=Price(version="1", currency="USD", input_nano=1, cached_nano=1, output_nano=1),
            granted_at=Timestamp(seconds=at - 1),
        ),
        usage=TokenUsage(input_total=100, input_cached=40, output_total=10),
        cost=Cost(nano_units=COST, currency="USD", price_version="1"),
        finish_reason=FinishReason.FINISH_REASON_STOP,
        source=source,  # type: ignore[arg-type]
        timings=Timings(ttft_ms=12.5),
        finished_at=Timestamp(seconds=at, nanos=123_456_000),
        engine="sim 1",
    )
    return usage_event(record, source="downstack/tests")


def lost(lease_id: str, tenant_id: str) -> Event:
    """The record that a scheduler writes when the worker is gone."""
    return usage(lease_id, tenant_id, source=UsageSource.USAGE_SOURCE_LAST_REPORT)


def decided(
    lease_id: str, tenant_id: str, *, request_id: str = "req_1", attempt: int = 1, granted: str = "", **grant: Any
) -> Event:
    """The event of a decision; with the fields of a grant, it carries one, of the lease `granted` or its own."""
    record = AuditRecorded(
        tenant_id=tenant_id,
        request_id=request_id,
        occurred_at=Timestamp(seconds=NOON),
        decided=Decision(request_id=request_id, attempt=attempt, lease_id=lease_id, worker_id="w1", reason="because"),
    )
    if grant:
        record.grant.CopyFrom(
            LeaseGrant(
                lease_id=granted or lease_id,
                tenant_id=tenant_id,
                request_id=request_id,
                attempt=attempt,
                worker_id="w1",
                price=Price(version="7", currency="EUR", input_nano=1, cached_nano=1, output_nano=1),
                granted_at=Timestamp(seconds=NOON),
                expires_at=Timestamp(seconds=NOON + 30),
                queue_ms=1.5,
                **grant,
            )
        )
    return audit_event(record, source="downstack/tests", kind="decided", id_parts=[lease_id])


def received(*events: Event) -> list[ReceivedEvent]:
    return [ReceivedEvent(event=event, partition=0, offset=offset) for offset, event in enumerate(events)]
