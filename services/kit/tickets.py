"""The scheduler's permission to run one lease: signed here, checked by the worker."""

import hashlib
import hmac
from functools import lru_cache

from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.worker.v1.worker_pb2 import SignedTicket
from google.protobuf.message import DecodeError

from services.kit.errors import DownstackError, Reason

_PURPOSE = b"downstack ticket v1"
_MAX_BYTES = 64 * 1024


def sign_ticket(grant: LeaseGrant, *, secret: bytes) -> bytes:
    """The serialized SignedTicket of a grant."""
    key = _key(secret)
    data = grant.SerializeToString(deterministic=True)
    return SignedTicket(grant=data, signature=_signature(key, data), key_id=_key_id(key)).SerializeToString()


def verify_ticket(data: bytes, *, secret: bytes) -> LeaseGrant:
    """The grant of a ticket that was signed with `secret`.

    Whether it has expired, was used before, or is another worker's, is for the worker to decide.

    Raises:
        DownstackError: TICKET_INVALID: not a ticket, or signed by somebody else.
    """
    key = _key(secret)
    ticket = _parsed(data)
    if not hmac.compare_digest(_signature(key, ticket.grant), ticket.signature):
        known = ticket.key_id == _key_id(key)
        raise _invalid("its signature is wrong" if known else "it was signed with another secret")
    try:
        return LeaseGrant.FromString(ticket.grant)
    except DecodeError:
        raise _invalid("its grant cannot be read") from None


def _parsed(data: bytes) -> SignedTicket:
    if not data:
        raise _invalid("it is missing")
    if len(data) > _MAX_BYTES:
        raise _invalid(f"it is longer than {_MAX_BYTES} bytes")
    try:
        return SignedTicket.FromString(data)
    except DecodeError:
        raise _invalid("it cannot be read") from None


def _invalid(why: str) -> DownstackError:
    return DownstackError(Reason.TICKET_INVALID, f"The ticket is not valid: {why}.")


@lru_cache(maxsize=8)
def _key(secret: bytes) -> bytes:
    # A key of its own for each purpose: a signature made for one thing proves nothing about another.
    return hmac.digest(secret, _PURPOSE, "sha256")


@lru_cache(maxsize=8)
def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]


def _signature(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
