"""How an answer is shown: its tokens as they come, then who answered, what was cached, and what it cost."""

from collections.abc import Callable
from typing import Any

from downstack.answers import Answer
from downstack.cli.output import as_dict, count, money
from downstack.client import Generation
from downstack.types.v1 import stream_pb2


def stream(answer: Generation, write: Callable[[str], None]) -> None:
    """Write an answer's text as it comes, to its end."""
    for delta in answer:
        write(delta.text)


def facts(answer: Answer) -> str:
    """One line: model, worker, tokens, cost, times."""
    parts = [f"model {answer.model}", f"worker {answer.worker_id}"]
    if answer.usage:
        usage = answer.usage
        counts = f"{count(usage, 'input_total')} tokens in ({count(usage, 'input_cached')} cached)"
        parts += [counts, f"{count(usage, 'output_total')} out"]
    parts.append(f"cost {money(answer.cost)}")
    if answer.timings and answer.timings.HasField("ttft_ms"):
        parts.append(f"first token after {answer.timings.ttft_ms:.0f} ms")
    if answer.timings and answer.timings.HasField("total_ms"):
        parts.append(f"total {answer.timings.total_ms:.0f} ms")
    return " · ".join([*parts, answer.finish_reason])


def citation_line(citation: stream_pb2.Citation) -> str:
    """One passage in one line."""
    where = citation.uri or f"{citation.collection}/{citation.document_id}"
    return f"[{citation.mark}] {citation.title} ({where}, characters {citation.start} to {citation.end})"


def answer_dict(answer: Answer) -> dict[str, Any]:
    """A whole answer as plain data."""
    return {
        "request_id": answer.request_id,
        "text": answer.text,
        "texts": answer.texts,
        "started": as_dict(answer.started) if answer.started else None,
        "finished": as_dict(answer.finished) if answer.finished else None,
    }
