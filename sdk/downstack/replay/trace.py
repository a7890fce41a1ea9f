"""Reading traces: when which request came, how long it was, and which prefix it shared with others.

Formats:
    mooncake: JSON lines with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for each block of
        512 prompt tokens; equal ids are equal prefixes (Mooncake, FAST'25).
    azure: CSV with TIMESTAMP, ContextTokens and GeneratedTokens; nothing is known of prefixes.
    audit: the JSON lines of `downstack events tail --topic audit --json`: a tenant's own requests. Prefixes are not in
        the audit stream; a conversation's next prompt is taken to start with its last prompt.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

BLOCK_TOKENS = 512
"""Tokens of prompt that one block id of a trace stands for."""


class TraceError(Exception):
    """A trace cannot be read; the message is one sentence for a person."""


class TraceFormat(StrEnum):
    """The formats that can be read."""

    MOONCAKE = "mooncake"
    AZURE = "azure"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace.

    Attributes:
        at: Seconds since the trace's first request.
        blocks: An id for each full block of the prompt; equal ids are equal prefixes. Empty: nothing is shared.
        conversation: What it belongs to, where the trace says so.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    conversation: str = ""


def read_trace(path: Path, form: TraceFormat, *, limit: int = 0) -> list[Arrival]:
    """The requests of a trace in the order of their arrival, at most `limit` of them if that is not 0.

    Raises:
        TraceError: The file cannot be read, or is not of this format.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            found = list(_PARSERS[form](lines))
    except OSError as error:
        raise TraceError(f"the trace {path} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path} is not a trace of the format {form.value}: {error!r}") from error
    if not found:
        raise TraceError(f"the trace {path} holds no request")
    found.sort(key=lambda one: one.at)
    first = found[0].at
    kept = found[:limit] if limit else found
    return [Arrival(one.at - first, one.prompt_tokens, one.output_tokens, one.blocks, one.conversation) for one in kept]


def _mooncake(lines: Iterable[str]) -> Iterator[Arrival]:
    for line in lines:
        if not line.strip():
            continue
        entry = json.loads(line)
        prompt = int(entry["input_length"])
        # The last block is not full, and a block that is not full cannot be found again.
        blocks = tuple(int(block) for block in entry["hash_ids"][: prompt // BLOCK_TOKENS])
        yield Arrival(float(entry["timestamp"]) / 1000, max(1, prompt), max(1, int(entry["output_length"])), blocks)


def _azure(lines: Iterable[str]) -> Iterator[Arrival]:
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
        yield Arrival(at, max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"])))


def _audit(lines: Iterable[str]) -> Iterator[Arrival]:
    """A request is known by its `finished` event, which says how long it was and how long it took."""
    threads: dict[str, list[int]] = {}
    ids = itertools.count()
    for line in lines:
        payload = json.loads(line).get("payload") or {} if line.strip() else {}
        finished = payload.get("finished", {})
        usage = finished.get("usage", {})
        prompt, output = int(usage.get("input_total", 0)), int(usage.get("output_total", 0))
        if not prompt or not output:
            continue
        conversation = str(payload.get("conversation_id", ""))
        thread = threads.setdefault(conversation, []) if conversation else []
        thread.extend(itertools.islice(ids, max(0, prompt // BLOCK_TOKENS - len(thread))))
        ended = datetime.fromisoformat(payload["occurred_at"]).timestamp()
        at = ended - float(finished.get("timings", {}).get("total_ms", 0.0)) / 1000
        yield Arrival(at, prompt, output, tuple(thread[: prompt // BLOCK_TOKENS]), conversation)


_PARSERS: Mapping[TraceFormat, Callable[[Iterable[str]], Iterator[Arrival]]] = {
    TraceFormat.MOONCAKE: _mooncake,
    TraceFormat.AZURE: _azure,
    TraceFormat.AUDIT: _audit,
}
