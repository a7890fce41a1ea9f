"""Where a list goes on, as an opaque token that serves the tenant and the filter it was made for, and no other."""

import base64
import hmac
from collections.abc import Sequence

from services.kit.pg.paging import read_cursor, refuse_cursor, write_cursor

_PURPOSE = b"downstack page token v1"
_TAG_BYTES = 16


class PageTokens:
    """Signs positions. A token of another tenant, filter or deployment is refused like one that was made up."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _PURPOSE, "sha256")

    def write(self, position: Sequence[str], *, bound_to: Sequence[str]) -> str:
        cursor = write_cursor(*position)
        return f"{cursor}.{self._tag(cursor, bound_to)}"

    def read(self, token: str, *, parts: int, bound_to: Sequence[str]) -> Sequence[str] | None:
        """The position; None for an empty token. Raises PARAM_OUT_OF_RANGE for a token that does not belong here."""
        if not token:
            return None
        cursor, _, tag = token.partition(".")
        if not hmac.compare_digest(self._tag(cursor, bound_to).encode(), tag.encode()):
            raise refuse_cursor()
        return read_cursor(cursor, parts=parts)

    def _tag(self, cursor: str, bound_to: Sequence[str]) -> str:
        body = "\0".join((cursor, *bound_to)).encode()
        digest = hmac.digest(self._key, body, "sha256")[:_TAG_BYTES]
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
