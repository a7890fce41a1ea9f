"""Names for things: time-ordered random ids, and event ids that follow from the fact they stand for."""

import secrets
import time
import uuid

# Crockford's base 32 without i, l, o and u, in ascending order, so that ids sort by time as text.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_CHARACTERS = 26
_EVENTS = uuid.UUID("6f0f6f0a-3c0e-5d52-9a6b-0d4f5c1b7a11")


def new_id(prefix: str) -> str:
    """A new id such as `req_01k9…`: the prefix and 26 characters, 48 bits of milliseconds and then 80 random bits."""
    value = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return f"{prefix.rstrip('_')}_" + "".join(
        _ALPHABET[value >> shift & 31] for shift in range(5 * (_CHARACTERS - 1), -1, -5)
    )


def event_id(*parts: str) -> str:
    """The id of the event of one fact. The same parts give the same id everywhere, so a repetition is recognised."""
    # A length before each part keeps ("ab", "c") and ("a", "bc") apart.
    return str(uuid.uuid5(_EVENTS, "".join(f"{len(part)}:{part}" for part in parts)))
