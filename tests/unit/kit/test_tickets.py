"""Tickets: what was signed comes back, and nothing else does."""

import pytest
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.worker.v1.worker_pb2 import SignedTicket

from services.kit.errors import Code, DownstackError, Reason
from services.kit.tickets import sign_ticket, verify_ticket

SECRET = b"0123456789abcdef"


def grant() -> LeaseGrant:
    return LeaseGrant(lease_id="lse_1", tenant_id="t", worker_id="w", prompt_tokens=7, labels={"b": "2", "a": "1"})


def refused(data: bytes, *, secret: bytes = SECRET) -> str:
    with pytest.raises(DownstackError) as caught:
        verify_ticket(data, secret=secret)
    assert (caught.value.reason, caught.value.code) == (Reason.TICKET_INVALID, Code.PERMISSION_DENIED)
    return caught.value.message


def test_a_ticket_returns_its_grant() -> None:
    data = sign_ticket(grant(), secret=SECRET)
    assert verify_ticket(data, secret=SECRET) == grant()
    assert data == sign_ticket(grant(), secret=SECRET)


def test_a_changed_grant_is_refused() -> None:
    """A caller cannot give itself another tenant's lease."""
    ticket = SignedTicket.FromString(sign_ticket(grant(), secret=SECRET))
    other = grant()
    other.tenant_id = "someone-else"
    ticket.grant = other.SerializeToString()
    assert "signature is wrong" in refused(ticket.SerializeToString())


def test_every_flipped_bit_is_refused() -> None:
    """No single bit of a ticket can be changed, but in the name of the key, which proves nothing."""
    data = sign_ticket(grant(), secret=SECRET)
    end_of_signed = data.index(SignedTicket.FromString(data).key_id.encode()) - 2
    for position in range(end_of_signed * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        refused(bytes(changed))


def test_another_secret_is_named() -> None:
    assert "another secret" in refused(sign_ticket(grant(), secret=SECRET), secret=b"fedcba9876543210")


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "missing"), (b"\xff\xff", "cannot be read"), (b"x" * 70_000, "longer")]
)
def test_what_is_no_ticket_is_refused(data: bytes, why: str) -> None:
    assert why in refused(data)
