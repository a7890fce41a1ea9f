"""Cursors of lists: where a page ended, as an opaque token."""

import base64
import binascii
import json
from collections.abc import Sequence

from services.kit.errors import DownstackError, FieldViolation, Reason

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_TOKEN = 512


def page_limit(page_size: int) -> int:
    """The number of rows to return: 0 asks for the default. Raises PARAM_OUT_OF_RANGE over the bound."""
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise _refusal("page_size", f"must be at most {MAX_PAGE_SIZE}")
    return page_size or DEFAULT_PAGE_SIZE


def write_cursor(*position: str) -> str:
    """A token for the position of a page's last row."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).rstrip(b"=").decode()


def read_cursor(token: str, *, parts: int) -> Sequence[str] | None:
    """The position in a token, None for an empty one. Raises PARAM_OUT_OF_RANGE for a token we never wrote."""
    if not token:
        return None
    if len(token) > _MAX_TOKEN:
        raise refuse_cursor()
    try:
        position = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise refuse_cursor() from None
    if not (
        isinstance(position, list)
        and len(position) == parts
        and all(isinstance(p, str) and "\0" not in p for p in position)
    ):
        raise refuse_cursor()
    return position


def refuse_cursor() -> DownstackError:
    """The refusal of a token that this list never returned."""
    return _refusal("page_token", "is not one that this list returned")


def _refusal(field: str, description: str) -> DownstackError:
    return DownstackError(
        Reason.PARAM_OUT_OF_RANGE, f"{field} {description}.", violations=[FieldViolation(field, description)]
    )
