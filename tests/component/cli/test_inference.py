"""Commands that ask the router, against a scripted one over real gRPC."""

import json
from collections.abc import Iterator

import pytest

from tests.component.cli.command import Command
from tests.component.sdk.scripted import KEY, ScriptedRouter, serving


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ScriptedRouter, str]]:
    with serving() as pair:
        yield pair


@pytest.fixture
def where(served: tuple[ScriptedRouter, str]) -> list[str]:
    return ["--target", served[1], "--api-key", KEY]


def test_an_answer_is_shown_with_its_facts(downstack: Command, where: list[str]) -> None:
    result = downstack("generate", "Hi", *where)
    assert result.status == 0
    assert result.out.startswith("Hello\n")
    for fact in ("model good", "worker worker-1", "3 tokens in (1 cached)", "2 out", "0.000000007 USD", "req_1"):
        assert fact in result.out


def test_an_answer_as_json_has_everything(downstack: Command, where: list[str]) -> None:
    document = json.loads(downstack("generate", "Hi", "--json", *where).out)
    assert document["text"] == "Hello"
    assert document["started"]["decision"]["reason"] == "it holds the prompt"
    assert document["finished"]["usage"]["input_cached"] == 1


def test_options_reach_the_router(downstack: Command, where: list[str], served: tuple[ScriptedRouter, str]) -> None:
    downstack(
        "generate", "Hi", "--system", "Be brief.", "--max-tokens", "7", "--temperature", "0", "-c", "docs", *where
    )
    spec = served[0].seen[-1][0].spec
    assert [message.content for message in spec.messages] == ["Be brief.", "Hi"]
    assert (spec.sampling.max_tokens, spec.sampling.temperature) == (7, 0)
    assert list(spec.retrieval.collections) == ["docs"]


def test_the_environment_names_the_target(
    downstack: Command, served: tuple[ScriptedRouter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOWNSTACK_TARGET", served[1])
    monkeypatch.setenv("DOWNSTACK_API_KEY", KEY)
    assert "good" in downstack("models").out


def test_a_refusal_is_one_sentence_with_its_reason_and_request(downstack: Command, where: list[str]) -> None:
    result = downstack("generate", "Hi", "--no-stream", "--model", "unknown", *where)
    assert result.status == 1
    assert result.sentence == "downstack: It was refused (MODEL_NOT_FOUND, request req_2)"


def test_a_broken_stream_is_said_after_what_came(downstack: Command, where: list[str]) -> None:
    result = downstack("generate", "Hi", "--model", "breaks", *where)
    assert result.status == 1
    assert "WORKER_LOST_MID_STREAM" in result.err


def test_a_conversation_goes_on_over_its_answers(
    downstack: Command, where: list[str], served: tuple[ScriptedRouter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question carries the conversation so far; /new forgets it; the end of input ends it."""
    lines = iter(["First?", "Second?", "/new", "Third?"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    before = len(served[0].seen)
    result = downstack("chat", *where)
    assert result.status == 0
    asked = [[message.content for message in call[0].spec.messages] for call in served[0].seen[before:]]
    assert asked == [["First?"], ["First?", "Hello", "Second?"], ["Third?"]]
    assert result.out.count("worker worker-1") == 3
