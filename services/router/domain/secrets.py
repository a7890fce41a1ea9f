"""What the router derives from its secret: cache salts and keyed hashes of prompts."""

import base64
import hashlib
import hmac
from array import array
from collections.abc import Sequence

SALT_LENGTH = 22


def cache_salt(secret: bytes, *, tenant_id: str) -> str:
    """The tenant's cache salt: it keeps one tenant's KV cache invisible to another, and never leaves the system."""
    digest = hmac.digest(secret, f"salt:{tenant_id}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode()[:SALT_LENGTH]


def prompt_hash(secret: bytes, *, tenant_id: str, token_ids: Sequence[int]) -> str:
    """A keyed hash of a prompt: equal prompts of one tenant can be recognized, and none can be guessed from it."""
    code = hmac.new(secret, f"prompt:{tenant_id}:".encode(), hashlib.sha256)
    code.update(array("I", token_ids).tobytes())
    return code.hexdigest()
