"""How results and errors are printed: tables and sentences for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from downstack.types.v1 import usage_pb2

JSON_FLAG = "--json"
_WIDE = 240


class CommandError(Exception):
    """A command cannot go on: one sentence for a person, and a reason for programs."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def console() -> Console:
    """Where results for people go; into a file or pipe, lines are not broken at a terminal's width."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)


def fail(message: str, *, reason: str, request_id: str = "") -> None:
    """Say on standard error why the command failed, as JSON where the command was asked for JSON."""
    sentence = " ".join(message.split()).rstrip(".")
    if JSON_FLAG in sys.argv:
        error = {"reason": reason, "message": sentence, **({"request_id": request_id} if request_id else {})}
        print(json.dumps({"error": error}), file=sys.stderr)
        return
    where = f", request {request_id}" if request_id else ""
    print(f"downstack: {sentence} ({reason}{where})", file=sys.stderr)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as plain data, under the names of the contract."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table; numbers to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _numeric(text: str) -> bool:
    return text.replace(".", "").replace(",", "").replace("-", "").isdigit() or not text


def money(cost: usage_pb2.Cost | None) -> str:
    """An amount with its currency, exact to the nano unit."""
    if cost is None or not cost.currency:
        return "free" if cost is None else "0"
    units, nano = divmod(cost.nano_units, 10**9)
    amount = f"{units}.{nano:09d}".rstrip("0").rstrip(".")
    return f"{amount} {cost.currency}"


def count(holder: Message, field: str) -> str:
    """A count that may be unknown."""
    return str(getattr(holder, field)) if holder.HasField(field) else "?"


def enum_name(names: Any, value: int, prefix: str) -> str:
    """An enum value as people write it."""
    return str(names.Name(value)).removeprefix(prefix).lower().replace("_", " ")
