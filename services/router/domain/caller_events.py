"""Validates the caller's own events."""

from collections.abc import Sequence

from services.router.domain.facts import CallerEvent
from services.router.domain.findings import Findings

EVENTS_MOST = 100
ID_BYTES = 128
KIND_BYTES = 64
CONVERSATION_BYTES = 128
ATTRIBUTES_BYTES = 8 * 1024
# The years 1 to 9999, as google.protobuf.Timestamp has them.
EARLIEST_NS = -62_135_596_800 * 10**9
LATEST_NS = 253_402_300_800 * 10**9 - 1


def validate_events(events: Sequence[CallerEvent]) -> None:
    """Raise one error that names every violation in all the events, or return."""
    found = Findings()
    if not 1 <= len(events) <= EVENTS_MOST:
        found.add("events", f"must hold 1 to {EVENTS_MOST} events, holds {len(events)}")
    for position, event in enumerate(events[:EVENTS_MOST]):
        _check(f"events[{position}]", event, found)
    found.raise_if_any()


def _check(where: str, event: CallerEvent, found: Findings) -> None:
    if not event.id:
        found.add(f"{where}.id", "is required")
    if not event.kind:
        found.add(f"{where}.kind", "is required")
    found.bytes_at_most(f"{where}.id", event.id, most=ID_BYTES)
    found.bytes_at_most(f"{where}.kind", event.kind, most=KIND_BYTES)
    found.bytes_at_most(f"{where}.request_id", event.request_id, most=ID_BYTES)
    found.bytes_at_most(f"{where}.conversation_id", event.conversation_id, most=CONVERSATION_BYTES)
    if len(event.attributes) > ATTRIBUTES_BYTES:
        found.add(f"{where}.attributes", f"must be at most {ATTRIBUTES_BYTES} bytes, is {len(event.attributes)}")
    if event.caller_time_ns is not None and not EARLIEST_NS <= event.caller_time_ns <= LATEST_NS:
        found.add(f"{where}.occurred_at", "must be between the years 1 and 9999")
