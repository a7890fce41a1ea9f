"""Writes facts into the outbox, from where they go to Kafka."""

from collections.abc import Sequence

from downstack.events.v1 import events_pb2 as events_pb
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit import telemetry
from services.kit.clock import Clock
from services.kit.context import current_request_id
from services.kit.events.event import Event, audit_event
from services.kit.events.outbox import Outbox
from services.router.adapters.wire_answer import finish_reason_to, timings_to, usage_to
from services.router.adapters.wire_request import timestamp_to
from services.router.domain.facts import Administered, Admitted, CallerEvent, Fact, Record, Refused, RequestFinished

SOURCE = "downstack/router"


class OutboxAudit:
    """The audit stream over one outbox."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    def check_open(self) -> None:
        self._outbox.check_open()

    async def record(self, *records: Record) -> None:
        traceparent = telemetry.trace_headers().get("traceparent", "")
        await self._outbox.append(*(self._event(record, traceparent) for record in records))

    def _event(self, record: Record, traceparent: str) -> Event:
        kind, id_parts = _identity_of(record)
        return audit_event(
            _recorded(record, now=timestamp_to(round(self._clock.now() * 1e9))),
            source=SOURCE,
            kind=kind,
            id_parts=id_parts,
            traceparent=traceparent,
        )


def _identity_of(record: Record) -> tuple[str, Sequence[str]]:
    """What makes the fact the same fact when it is told again."""
    subject, fact = record.subject, record.fact
    if isinstance(fact, CallerEvent):
        return "caller", (subject.tenant_id, fact.id)
    if isinstance(fact, Administered):
        return "administered", (current_request_id(), fact.action, fact.resource)
    kinds = {Admitted: "admitted", Refused: "refused", RequestFinished: "finished"}
    return kinds[type(fact)], (subject.request_id,)


def _recorded(record: Record, *, now: Timestamp) -> events_pb.AuditRecorded:
    subject = record.subject
    wire = events_pb.AuditRecorded(
        tenant_id=subject.tenant_id,
        request_id=subject.request_id,
        conversation_id=subject.conversation_id,
        principal=subject.principal,
        key_id=subject.key_id,
        occurred_at=now,
    )
    _fill(wire, record.fact, now)
    return wire


def _fill(wire: events_pb.AuditRecorded, fact: Fact, now: Timestamp) -> None:
    if isinstance(fact, Admitted):
        wire.admitted.CopyFrom(
            events_pb.Admitted(
                model=fact.model,
                prompt_tokens=fact.prompt_tokens,
                max_output_tokens=fact.max_output_tokens,
                prompt_hash=fact.prompt_hash,
                method=fact.method,
            )
        )
    elif isinstance(fact, Refused):
        wire.refused.CopyFrom(events_pb.Refused(code=fact.code, reason=fact.reason, method=fact.method))
    elif isinstance(fact, RequestFinished):
        wire.finished.CopyFrom(_finished(fact))
    elif isinstance(fact, Administered):
        wire.administered.CopyFrom(events_pb.Administered(action=fact.action, resource=fact.resource))
    else:
        wire.caller_event.CopyFrom(_caller_event(fact, now))


def _finished(fact: RequestFinished) -> events_pb.RequestFinished:
    return events_pb.RequestFinished(
        code=fact.code,
        reason=fact.reason,
        finish_reason=finish_reason_to(fact.finish_reason),
        usage=usage_to(fact.usage),
        timings=timings_to(fact.timings),
        attempts=fact.attempts,
    )


def _caller_event(fact: CallerEvent, now: Timestamp) -> events_pb.CallerRecorded:
    return events_pb.CallerRecorded(
        id=fact.id,
        kind=fact.kind,
        attributes=Struct.FromString(fact.attributes) if fact.attributes else None,
        caller_time=now if fact.caller_time_ns is None else timestamp_to(fact.caller_time_ns),
    )
