"""Events as values, and their CloudEvents form."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from downstack.events.v1.events_pb2 import AuditRecorded, UsageRecorded, WorkerChanged
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant, WorkerPhase
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.kit.events.event import (
    Event,
    MalformedEventError,
    audit_event,
    headers_of,
    received_event,
    usage_event,
    worker_event,
)
from services.kit.events.topics import AUDIT, TOPICS, USAGE, WORKERS

_WORD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def _usage(lease_id: str = "lse_1", **changes: Any) -> UsageRecorded:
    grant = LeaseGrant(lease_id=lease_id, tenant_id="tenant-a")
    return UsageRecorded(grant=grant, finished_at=Timestamp(seconds=1_800_000_000, nanos=250_000_000), **changes)


def _record(event: Event, **changes: Any) -> Any:
    fields = {
        "topic": event.topic,
        "partition": 3,
        "offset": 17,
        "key": event.key.encode(),
        "value": event.payload,
        "headers": headers_of(event),
    }
    return SimpleNamespace(**{**fields, **changes})


def test_a_leases_usage_has_one_id_whoever_writes_it() -> None:
    by_worker = usage_event(_usage(), source="downstack/worker/w1")
    by_scheduler = usage_event(_usage(engine="lost"), source="downstack/scheduler")
    another = usage_event(_usage("lse_2"), source="downstack/worker/w1")

    assert by_worker.id == by_scheduler.id
    assert another.id != by_worker.id
    assert (by_worker.topic, by_worker.key, by_worker.subject) == (USAGE.name, "tenant-a", "lse_1")
    assert by_worker.time == 1_800_000_000.25


def test_audit_keeps_a_conversation_together_and_facts_apart() -> None:
    record = AuditRecorded(tenant_id="t", request_id="r", conversation_id="c")
    lone = AuditRecorded(tenant_id="t", request_id="r")

    admitted = audit_event(record, source="s", kind="admitted", id_parts=["r"])
    finished = audit_event(record, source="s", kind="finished", id_parts=["r"])

    assert admitted.key == finished.key == "t/c"
    assert audit_event(lone, source="s", kind="admitted", id_parts=["r"]).key == "t/r"
    assert admitted.id != finished.id
    assert admitted.topic == AUDIT.name


def test_a_worker_event_is_keyed_by_the_worker() -> None:
    event = worker_event(
        WorkerChanged(worker_id="w", epoch="e", phase=WorkerPhase.Value("WORKER_PHASE_READY")), source="s"
    )

    assert event.key == "w"
    assert event.topic == WORKERS.name
    assert event.type == "downstack.events.v1.WorkerChanged"


@given(_WORD, _WORD, _WORD, st.binary(min_size=1), st.floats(min_value=0, max_value=4e9), st.text(max_size=10))
def test_an_event_comes_back_from_its_record_as_it_was(
    name: str, source: str, key: str, payload: bytes, time: float, subject: str
) -> None:
    event = Event(
        name, source, "a.B", "topic", key, payload, round(time, 6), subject.encode("utf-8", "ignore").decode()
    )

    received = received_event(_record(event))

    assert dataclasses.replace(received.event, time=0) == dataclasses.replace(event, time=0)
    assert received.event.time == pytest.approx(event.time, abs=1e-5)
    assert (received.partition, received.offset) == (3, 17)


def test_the_headers_are_those_of_the_cloudevents_binding() -> None:
    headers = dict(headers_of(usage_event(_usage(), source="downstack/worker/w1", traceparent="00-ab-cd-01")))

    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_type"] == b"downstack.events.v1.UsageRecorded"
    assert headers["ce_time"] == b"2027-01-15T08:00:00.250000Z"
    assert headers["ce_partitionkey"] == b"tenant-a"
    assert headers["content-type"] == b"application/protobuf"
    assert headers["traceparent"] == b"00-ab-cd-01"


@pytest.mark.parametrize(
    "change",
    [
        {"headers": []},
        {"headers": [("ce_specversion", b"0.3")]},
        {"headers": [("ce_specversion", b"\xff")]},
        {"headers": [("ce_specversion", b"1.0"), ("ce_id", b"1")]},
        {"value": None},
        {"key": None},
        {"key": b"\xff"},
    ],
)
def test_a_record_that_is_no_event_is_named_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError):
        received_event(_record(usage_event(_usage(), source="s"), **change))


def test_a_payload_decodes_as_its_own_type_only() -> None:
    received = received_event(_record(usage_event(_usage(), source="s")))
    broken = received_event(_record(usage_event(_usage(), source="s"), value=b"\xff\xff\xff"))

    assert received.decode(UsageRecorded) == _usage()
    with pytest.raises(MalformedEventError, match="not downstack"):
        received.decode(AuditRecorded)
    with pytest.raises(MalformedEventError, match="payload"):
        broken.decode(UsageRecorded)


def test_an_event_without_a_payload_cannot_be_made() -> None:
    """It would be a tombstone on a compacted topic."""
    with pytest.raises(ValueError, match="payload"):
        Event("i", "s", "t", "topic", "k", b"", 0.0)


def test_every_topic_takes_the_time_of_arrival() -> None:
    assert all(topic.config["message.timestamp.type"] == "LogAppendTime" for topic in TOPICS)
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)
