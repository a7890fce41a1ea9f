"""Traces are read as they are written, and what is no trace is refused in one sentence."""

import json
from pathlib import Path

import pytest
from downstack.replay.faults import Crash, read_faults
from downstack.replay.trace import BLOCK_TOKENS, Arrival, TraceError, TraceFormat, read_trace


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_mooncake_trace_keeps_its_full_blocks(tmp_path: Path) -> None:
    """The block that is not full cannot be found again, and is left out."""
    rows = [
        {"timestamp": 5000, "input_length": 2 * BLOCK_TOKENS + 1, "output_length": 3, "hash_ids": [1, 2, 3]},
        {"timestamp": 2000, "input_length": BLOCK_TOKENS, "output_length": 4, "hash_ids": [1]},
    ]
    found = read_trace(written(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n"), TraceFormat.MOONCAKE)
    assert found == [Arrival(0.0, BLOCK_TOKENS, 4, (1,)), Arrival(3.0, 2 * BLOCK_TOKENS + 1, 3, (1, 2))]


def test_an_azure_trace_has_no_prefixes(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,374,44\n2023-11-16 18:15:48.0,396,109\n"
    assert read_trace(written(tmp_path, text), TraceFormat.AZURE) == [
        Arrival(0.0, 374, 44),
        Arrival(1.5, 396, 109),
    ]


def test_an_audit_stream_is_replayed_by_its_finished_requests(tmp_path: Path) -> None:
    """Other events are passed over, and a conversation's next prompt starts with its last one."""

    def event(second: int, prompt: int, conversation: str) -> str:
        usage = {"input_total": prompt, "output_total": 7}
        return json.dumps(
            {
                "topic": "downstack.audit.v1",
                "payload": {
                    "conversation_id": conversation,
                    "occurred_at": f"2026-01-01T00:00:{second:02d}Z",
                    "finished": {"usage": usage, "timings": {"total_ms": 1000.0}},
                },
            }
        )

    lines = [
        event(1, BLOCK_TOKENS, "a"),
        json.dumps({"topic": "downstack.audit.v1", "payload": {"admitted": {"model": "m"}}}),
        json.dumps({"topic": "downstack.audit.v1", "payload": None}),
        event(2, 2 * BLOCK_TOKENS, "a"),
        event(3, BLOCK_TOKENS, "b"),
        event(4, 3, ""),
    ]
    found = read_trace(written(tmp_path, "\n".join(lines)), TraceFormat.AUDIT)
    assert [(one.at, one.prompt_tokens, one.conversation) for one in found] == [
        (0.0, BLOCK_TOKENS, "a"),
        (1.0, 2 * BLOCK_TOKENS, "a"),
        (2.0, BLOCK_TOKENS, "b"),
        (3.0, 3, ""),
    ]
    first, second, other, bare = (one.blocks for one in found)
    assert second[:1] == first
    assert not set(other) & set(second)
    assert bare == ()


@pytest.mark.parametrize("form", TraceFormat)
@pytest.mark.parametrize("text", ["", "{}\n", "a,b\n1,2\n", '{"timestamp": "x"}\n', "[1, 2]\n"])
def test_what_is_no_trace_is_refused(tmp_path: Path, form: TraceFormat, text: str) -> None:
    with pytest.raises(TraceError):
        read_trace(written(tmp_path, text), form)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nowhere"):
        read_trace(tmp_path / "nowhere", TraceFormat.AZURE)


def test_faults_are_read(tmp_path: Path) -> None:
    text = '[{"at": 60, "worker": 1, "down_s": 30}, {"at": 2, "worker": 0}]'
    assert read_faults(written(tmp_path, text), workers=2) == [Crash(60.0, 1, 30.0), Crash(2.0, 0, None)]


@pytest.mark.parametrize(
    "text", ["{", '"x"', "{}", "[1]", '[{"at": 1}]', '[{"at": 1, "worker": 2}]', '[{"at": -1, "worker": 0}]']
)
def test_impossible_faults_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError):
        read_faults(written(tmp_path, text), workers=2)
