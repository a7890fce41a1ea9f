"""Which ticket may start a lease, and what is remembered of it."""

from dataclasses import replace

import pytest

from services.kit.errors import DownstackError, Reason
from services.worker.domain.leases import Counts, Grant, LeaseBook, Phase

GRANT = Grant(
    lease_id="lse_1",
    worker_id="wkr",
    worker_epoch="epo",
    model="m",
    adapter="",
    prompt_tokens=10,
    max_output_tokens=5,
    expires_at=100.0,
)


def book(**changes: int) -> LeaseBook:
    limits = {"max_running": 3, "max_remembered": 4} | changes
    return LeaseBook(worker_id="wkr", epoch="epo", model="m", **limits)


def admit(leases: LeaseBook, number: int = 1, *, now: float = 50.0, expires_at: float = 100.0) -> str:
    grant = replace(GRANT, lease_id=f"lse_{number}", expires_at=expires_at)
    return leases.admit(grant, now=now, prompt_tokens=10).lease_id


@pytest.mark.parametrize(
    ("grant", "reason"),
    [
        (replace(GRANT, worker_id="other"), Reason.TICKET_INVALID),
        (replace(GRANT, worker_epoch="earlier"), Reason.STALE_EPOCH),
        (replace(GRANT, model="other"), Reason.TICKET_INVALID),
        (replace(GRANT, adapter="lora"), Reason.ADAPTER_NOT_FOUND),
        (replace(GRANT, expires_at=49.9), Reason.TICKET_EXPIRED),
        (replace(GRANT, prompt_tokens=11), Reason.TICKET_INVALID),
    ],
)
def test_a_ticket_that_does_not_fit_starts_nothing(grant: Grant, reason: Reason) -> None:
    """Each mismatch has its reason, and the right ticket still works afterwards."""
    leases = book()
    with pytest.raises(DownstackError) as caught:
        leases.admit(grant, now=50.0, prompt_tokens=10)
    assert caught.value.reason == reason
    assert not leases.running
    assert leases.admit(GRANT, now=50.0, prompt_tokens=10).phase is Phase.STARTED


def test_a_ticket_is_used_once() -> None:
    """Also after its lease has ended."""
    leases = book()
    lease_id = admit(leases)
    for _ in range(2):
        with pytest.raises(DownstackError) as caught:
            admit(leases)
        assert caught.value.reason == Reason.TICKET_USED
        if lease_id in leases.running:
            leases.advance(lease_id, phase=Phase.FINISHED, counts=Counts())
    assert not leases.running


def test_used_tickets_are_forgotten_once_they_have_expired() -> None:
    """The memory is bounded, and an expired ticket is refused for that alone."""
    leases = book(max_running=10)
    for number in range(4):
        leases.advance(admit(leases, number), phase=Phase.FINISHED, counts=Counts())
    with pytest.raises(DownstackError) as caught:
        admit(leases, 9)
    assert caught.value.reason == Reason.OVERLOADED
    assert admit(leases, 9, now=101.0, expires_at=200.0) == "lse_9"


def test_there_are_only_so_many_leases_at_once() -> None:
    """The bound is the last line; the refusal says when to come again."""
    leases = book()
    for number in range(3):
        admit(leases, number)
    with pytest.raises(DownstackError) as caught:
        admit(leases, 3)
    assert caught.value.reason == Reason.OVERLOADED
    assert caught.value.retry_after_s


def test_an_end_is_remembered_until_it_is_acknowledged() -> None:
    """With its counts; an acknowledgement of something else changes nothing."""
    leases = book()
    lease_id = admit(leases)
    leases.advance(lease_id, phase=Phase.DECODING, counts=Counts(10, 0, 1))
    leases.advance(lease_id, phase=Phase.FINISHED, counts=Counts(10, 0, 5))
    leases.acknowledge(["lse_other"])
    assert leases.unacknowledged[lease_id].counts.output_total == 5
    leases.acknowledge([lease_id])
    assert not leases.unacknowledged


def test_unacknowledged_ends_are_bounded() -> None:
    """The oldest gives way."""
    leases = book(max_running=10, max_remembered=4)
    for number in range(6):
        lease_id = admit(leases, number, now=50.0 + number * 100, expires_at=100.0 + number * 100)
        leases.advance(lease_id, phase=Phase.FINISHED, counts=Counts())
    assert list(leases.unacknowledged) == [f"lse_{number}" for number in range(2, 6)]
