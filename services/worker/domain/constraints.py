"""Whether a constraint may go to the engine's compiler, which is native code and takes any text at its word."""

import json
from collections.abc import Iterator

from services.kit.errors import DownstackError, Reason

MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_VALUES = 4000


def check_schema(text: str) -> None:
    """Raises DownstackError BAD_SCHEMA for what is no JSON object, or too deep or too large to compile in time."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise DownstackError(Reason.BAD_SCHEMA, "sampling.json_schema: is not JSON") from None
    if not isinstance(schema, dict):
        raise DownstackError(Reason.BAD_SCHEMA, "sampling.json_schema: must be a JSON object")
    for values, depth in enumerate(_depths(schema), start=1):
        if depth > MAX_SCHEMA_DEPTH:
            message = f"sampling.json_schema: may be nested at most {MAX_SCHEMA_DEPTH} deep"
            raise DownstackError(Reason.BAD_SCHEMA, message)
        if values > MAX_SCHEMA_VALUES:
            message = f"sampling.json_schema: may have at most {MAX_SCHEMA_VALUES} values"
            raise DownstackError(Reason.BAD_SCHEMA, message)


def check_regex(text: str) -> None:
    """Raises DownstackError BAD_SCHEMA for a regular expression that no compiler should see."""
    if "\0" in text:
        raise DownstackError(Reason.BAD_SCHEMA, "sampling.regex: must not contain a NUL character")


def _depths(schema: object) -> Iterator[int]:
    """The depth of each value, without recursion."""
    pending: list[tuple[object, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        yield depth
        if isinstance(value, dict):
            pending += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list):
            pending += [(child, depth + 1) for child in value]
