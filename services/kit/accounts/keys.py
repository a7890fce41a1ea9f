"""API keys as strings: making one, taking one apart, and the digest that is stored."""

import base64
import dataclasses
import hashlib
import hmac
import re
import secrets
import string

_PREFIX = "ds_live"
_ID_LENGTH = 8
_ID_ALPHABET = string.ascii_lowercase + string.digits
_KEY = re.compile(r"ds_live_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")


@dataclasses.dataclass(frozen=True)
class KeyParts:
    """A key taken apart. `key_id` is public; `whole` is what the caller sent, and is secret."""

    key_id: str
    whole: str = dataclasses.field(repr=False)


def generate_key() -> KeyParts:
    """A new key with 32 random bytes of secret."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return KeyParts(key_id=key_id, whole=f"{_PREFIX}_{key_id}_{secret}")


def parse_key(text: str) -> KeyParts | None:
    """The parts of a well-formed key, or None."""
    match = _KEY.fullmatch(text)
    return KeyParts(key_id=match[1], whole=text) if match is not None else None


def digest_of(key: str, *, pepper: bytes) -> bytes:
    """The 32 bytes that stand for the whole key: HMAC-SHA256 keyed by the pepper.

    A slow hash would buy nothing against 256 random bits, and would hold up the event loop.
    """
    return hmac.new(pepper, key.encode(), hashlib.sha256).digest()
