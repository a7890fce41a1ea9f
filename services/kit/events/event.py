"""An event as a value, and its wire form: CloudEvents 1.0 in Kafka's binary mode, with a protobuf payload."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from downstack.events.v1.events_pb2 import AuditRecorded, UsageRecorded, WorkerChanged
from downstack.scheduler.v1.scheduler_pb2 import WorkerPhase
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.events.topics import AUDIT, USAGE, WORKERS
from services.kit.ids import event_id

_CONTENT_TYPE = b"application/protobuf"
# Under the broker's default bound of 1 MiB for a batch, with room for headers.
MAX_PAYLOAD_BYTES = 900_000

Headers = Sequence[tuple[str, bytes]]
M = TypeVar("M", bound=Message)


class MalformedEventError(Exception):
    """A record that is no event of ours. The message names what is wrong, and quotes nothing."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One fact. `source` and `id` together name it: the same fact has the same id whoever tells it, and how often.

    Attributes:
        id: Follows from the fact.
        source: The service that tells it, such as `downstack/worker/wkr-1`.
        type: The payload's full message name.
        topic: The topic's name.
        key: What it stays in order with.
        payload: The serialized message. Never empty: that would delete the key from a compacted topic.
        time: When it happened, in seconds since 1970.
        subject: What it is about, such as a lease.
        traceparent: The W3C trace context.
    """

    id: str
    source: str
    type: str
    topic: str
    key: str
    payload: bytes = dataclasses.field(repr=False)
    time: float
    subject: str = ""
    traceparent: str = ""

    def __post_init__(self) -> None:
        if not (self.id and self.source and self.type and self.topic and self.key and self.payload):
            raise ValueError(f"an event lacks its id, source, type, topic, key or payload: {self!r}")


@dataclasses.dataclass(frozen=True)
class ReceivedEvent:
    """An event as a consumer gets it, with its place in the topic."""

    event: Event
    partition: int
    offset: int

    def decode(self, message_type: type[M]) -> M:
        """The payload. Raises MalformedEventError where it is not a `message_type`."""
        if self.event.type != message_type.DESCRIPTOR.full_name:
            raise MalformedEventError(f"the type is {self.event.type}, not {message_type.DESCRIPTOR.full_name}")
        try:
            return message_type.FromString(self.event.payload)
        except DecodeError:
            raise MalformedEventError(f"the payload is no {self.event.type}") from None


def usage_event(record: UsageRecorded, *, source: str, traceparent: str = "") -> Event:
    """The event of a lease's one usage record. Whoever writes it, worker or scheduler, it has the same id."""
    lease_id = record.grant.lease_id
    return Event(
        id=event_id("usage", lease_id),
        source=source,
        type=record.DESCRIPTOR.full_name,
        topic=USAGE.name,
        key=record.grant.tenant_id,
        payload=record.SerializeToString(),
        time=_seconds(record.finished_at),
        subject=lease_id,
        traceparent=traceparent,
    )


def audit_event(
    record: AuditRecorded, *, source: str, kind: str, id_parts: Sequence[str], traceparent: str = ""
) -> Event:
    """The event of an audited fact; `kind` and `id_parts` tell it from every other, such as "decided" and a lease."""
    return Event(
        id=event_id("audit", kind, *id_parts),
        source=source,
        type=record.DESCRIPTOR.full_name,
        topic=AUDIT.name,
        key=f"{record.tenant_id}/{record.conversation_id or record.request_id}",
        payload=record.SerializeToString(),
        time=_seconds(record.occurred_at),
        subject=record.request_id,
        traceparent=traceparent,
    )


def worker_event(record: WorkerChanged, *, source: str, traceparent: str = "") -> Event:
    """The event of a step in a worker's life."""
    phase, moment = WorkerPhase.Name(record.phase), str(record.occurred_at.ToNanoseconds())
    return Event(
        id=event_id("worker", record.worker_id, record.epoch, phase, moment),
        source=source,
        type=record.DESCRIPTOR.full_name,
        topic=WORKERS.name,
        key=record.worker_id,
        payload=record.SerializeToString(),
        time=_seconds(record.occurred_at),
        subject=record.worker_id,
        traceparent=traceparent,
    )


def headers_of(event: Event) -> list[tuple[str, bytes]]:
    """The event's attributes as Kafka headers."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": event.id,
        "ce_source": event.source,
        "ce_type": event.type,
        "ce_time": _rfc3339(event.time),
        "ce_subject": event.subject,
        "ce_partitionkey": event.key,
        "traceparent": event.traceparent,
    }
    headers = [(name, value.encode()) for name, value in attributes.items() if value]
    return [*headers, ("content-type", _CONTENT_TYPE)]


def received_event(record: Any) -> ReceivedEvent:
    """The event in a Kafka record (aiokafka's ConsumerRecord). Raises MalformedEventError."""
    headers = _first_of_each(record.headers)
    if headers.get("ce_specversion") != "1.0":
        raise MalformedEventError("the CloudEvents version is not 1.0")
    try:
        event = Event(
            id=headers.get("ce_id", ""),
            source=headers.get("ce_source", ""),
            type=headers.get("ce_type", ""),
            topic=record.topic,
            key=(record.key or b"").decode(),
            payload=record.value or b"",
            time=dt.datetime.fromisoformat(headers.get("ce_time", "")).timestamp(),
            subject=headers.get("ce_subject", ""),
            traceparent=headers.get("traceparent", ""),
        )
    except ValueError:
        raise MalformedEventError("an attribute, the key or the payload is missing or malformed") from None
    return ReceivedEvent(event=event, partition=record.partition, offset=record.offset)


def _first_of_each(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        try:
            found.setdefault(name, value.decode())
        except (UnicodeDecodeError, AttributeError):
            raise MalformedEventError("a header is not text") from None
    return found


def _rfc3339(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9
