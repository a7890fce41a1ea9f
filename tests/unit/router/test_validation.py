"""Every limit that the contract states, at its edge and one past it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import Code, DownstackError, Reason
from services.router.domain.request import Message, Retrieval, Role, Tool, ToolCall
from services.router.domain.validation import validate
from tests.unit.router.factories import request, user


def tools(count: int) -> tuple[Tool, ...]:
    return tuple(Tool(f"tool_{number}") for number in range(count))


def called(*calls: ToolCall) -> Message:
    return Message(role=Role.ASSISTANT, content="", tool_calls=calls)


SAMPLING_EDGES = [
    ("max_tokens", [1, 2**32 - 1], [0]),
    ("temperature", [0.0, 2.0], [-0.1, 2.1, math.nan, math.inf]),
    ("top_p", [0.01, 1.0], [0.0, 1.1, math.nan]),
    ("min_p", [0.0, 1.0], [-0.1, 1.1, math.nan]),
    ("frequency_penalty", [-2.0, 2.0], [-2.1, 2.1, math.nan]),
    ("presence_penalty", [-2.0, 2.0], [-2.1, 2.1, -math.inf]),
    ("repetition_penalty", [0.01, 2.0], [0.0, 2.1, math.nan]),
    ("n", [1, 8], [0, 9]),
    ("logprobs", [0, 20], [21]),
    ("stop", [("x",) * 16, ("x" * 256,)], [("x",) * 17, ("x" * 257,), ("",)]),
    ("stop_token_ids", [(1,) * 64], [(1,) * 65]),
    (
        "json_schema",
        ["{}", '{"a": "' + "x" * 65000 + '"}'],
        ["", "[]", "{", "1" * 5000, '{"a": "' + "x" * 66000 + '"}'],
    ),
    ("regex", ["a+", "x" * 8192], ["", "x" * 8193]),
]
SPEC_EDGES = [
    ("model", ["m", "m" * 256], ["", "m" * 257]),
    ("messages", [(user(),) * 1024], [(user(),) * 1025]),
    ("conversation_id", ["c" * 128], ["c" * 129, "ü" * 65]),
    (
        "labels",
        [{str(i): "" for i in range(16)}, {"k" * 64: "v" * 64}],
        [{str(i): "" for i in range(17)}, {"k": "v" * 65}, {"k" * 65: ""}, {"": "v"}],
    ),
    ("min_quality", [0.0, 1.0], [-0.1, 1.1, math.nan]),
    ("max_cost", [0.0, 12.5], [-1.0, math.inf, math.nan]),
    ("value", [0.0, 12.5], [-1.0, math.inf]),
    ("priority", [0, 3], [4, -1]),
    (
        "tools",
        [tools(64), (Tool("a-Z_9" * 12),), (Tool("t", "d" * 8192, '{"a": "' + "x" * 65000 + '"}'),)],
        [
            tools(65),
            (Tool(""),),
            (Tool("t" * 65),),
            (Tool("no blanks"),),
            (Tool("t", "d" * 8193),),
            (Tool("t", "\0"),),
            (Tool("t", parameters="[]"),),
            (Tool("t", parameters="{" + " " * 66000 + "}"),),
            (Tool("t"), Tool("t")),
        ],
    ),
    (
        "messages",
        [(user(), called(ToolCall("c" * 128, "t", '{"a": 1}'))), (user(), called(*[ToolCall("c", "t")] * 64))],
        [
            (user(), called(ToolCall("", "t"))),
            (user(), called(ToolCall("c", ""))),
            (user(), called(ToolCall("c", "t", "1"))),
            (user(), called(*[ToolCall("c", "t")] * 65)),
            (Message(role=Role.USER, content="u", tool_calls=(ToolCall("c", "t"),)),),
        ],
    ),
]
RETRIEVAL_EDGES = [
    ("collections", [("c",), ("c",) * 16], [(), ("c",) * 17, ("",), ("c" * 129,)]),
    ("query", ["q" * 8192], ["q" * 8193, "ü" * 4097]),
    ("top_k", [1, 32], [0, 33]),
    ("budget_s", [0.001, 60.0], [0.0, -1.0, math.inf]),
]


def cases(edges: list[tuple[str, list[Any], list[Any]]], *, good: bool) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{str(value)[:20]}")
        for name, fine, wrong in edges
        for value in (fine if good else wrong)
    ]


def fields_refused(**fields: Any) -> set[str]:
    with pytest.raises(DownstackError) as raised:
        validate(request(**fields))
    assert raised.value.code == Code.INVALID_ARGUMENT
    return {violation.field.split("[")[0] for violation in raised.value.violations}


@pytest.mark.parametrize(("name", "value"), cases(SAMPLING_EDGES, good=True))
def test_sampling_at_its_edges_is_fine(name: str, value: Any) -> None:
    """The contract's ranges are closed where they say so."""
    validate(request(sampling={name: value}))


@pytest.mark.parametrize(("name", "value"), cases(SAMPLING_EDGES, good=False))
def test_sampling_past_its_edges_is_refused(name: str, value: Any) -> None:
    """Exactly the field that is wrong is named."""
    assert fields_refused(sampling={name: value}) == {f"spec.sampling.{name}"}


@pytest.mark.parametrize(("name", "value"), cases(SPEC_EDGES, good=True))
def test_a_request_at_its_edges_is_fine(name: str, value: Any) -> None:
    """The limits themselves are allowed."""
    validate(request(**{name: value}))


@pytest.mark.parametrize(("name", "value"), cases(SPEC_EDGES, good=False))
def test_a_request_past_its_edges_is_refused(name: str, value: Any) -> None:
    """Bytes are counted, not characters."""
    assert fields_refused(**{name: value}) == {f"spec.{name}"}


@pytest.mark.parametrize(("name", "value"), cases(RETRIEVAL_EDGES, good=True))
def test_retrieval_at_its_edges_is_fine(name: str, value: Any) -> None:
    """The limits themselves are allowed."""
    validate(request(retrieval=Retrieval(**({"collections": ("c",)} | {name: value}))))


@pytest.mark.parametrize(("name", "value"), cases(RETRIEVAL_EDGES, good=False))
def test_retrieval_past_its_edges_is_refused(name: str, value: Any) -> None:
    """Exactly the field that is wrong is named."""
    assert fields_refused(retrieval=Retrieval(**({"collections": ("c",)} | {name: value}))) == {
        f"spec.retrieval.{name.removesuffix('_s')}"
    }


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"messages": ()}, Reason.PARAM_OUT_OF_RANGE, "spec.messages"),
        ({"prompt": "and messages"}, Reason.PARAM_CONFLICT, "spec.prompt"),
        ({"messages": (), "prompt": "x" * (2**20 + 1)}, Reason.PROMPT_TOO_LONG, "spec.prompt"),
        ({"messages": (), "prompt": "\x00"}, Reason.BAD_ENCODING, "spec.prompt"),
        ({"messages": (user("\x00"),)}, Reason.BAD_ENCODING, "spec.messages[0].content"),
        ({"messages": (Message(role=0, content="x"),)}, Reason.PARAM_OUT_OF_RANGE, "spec.messages[0].role"),
        ({"messages": (Message(role=9, content="x"),)}, Reason.PARAM_OUT_OF_RANGE, "spec.messages[0].role"),
        ({"messages": (user(), user(""))}, Reason.PARAM_OUT_OF_RANGE, "spec.messages[1].content"),
        (
            {"messages": (Message(role=Role.USER, content="x", name="n" * 65),)},
            Reason.PARAM_OUT_OF_RANGE,
            "spec.messages[0].name",
        ),
        (
            {"messages": (Message(role=Role.USER, content="x", tool_call_id="t"),)},
            Reason.PARAM_CONFLICT,
            "spec.messages[0].tool_call_id",
        ),
        ({"sampling": {"max_tokens": 2, "min_tokens": 3}}, Reason.PARAM_CONFLICT, "spec.sampling.min_tokens"),
        ({"sampling": {"temperature": 0.0, "n": 2}}, Reason.PARAM_CONFLICT, "spec.sampling.n"),
        ({"conversation_id": "a\x00b"}, Reason.BAD_ENCODING, "spec.conversation_id"),
        (
            {"messages": (Message(role=Role.SYSTEM, content="x"),), "retrieval": Retrieval(collections=("c",))},
            Reason.PARAM_CONFLICT,
            "spec.retrieval.query",
        ),
    ],
)
def test_reasons(fields: dict[str, Any], reason: Reason, field: str) -> None:
    """Each kind of mistake has its own reason."""
    with pytest.raises(DownstackError) as raised:
        validate(request(**fields))
    assert raised.value.reason == reason
    assert field in [violation.field for violation in raised.value.violations]


def test_an_assistant_may_have_said_nothing() -> None:
    """A message that only calls tools has no content."""
    validate(request(messages=(user(), Message(role=Role.ASSISTANT, content=""), user())))


def test_everything_wrong_is_found_at_once() -> None:
    """The sentence names the first and counts the others; the reason is that of the first."""
    with pytest.raises(DownstackError) as raised:
        validate(request(model="", min_quality=2.0, sampling={"n": 0, "temperature": 9.0}))
    assert len(raised.value.violations) == 4
    assert raised.value.reason == Reason.PARAM_OUT_OF_RANGE
    assert raised.value.message == "spec.model is required (and 3 more)"


@given(st.text(), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), st.floats(), st.text())
def test_it_ends_in_a_refusal_or_not_at_all(model: str, roles: list[int], number: float, text: str) -> None:
    """Whatever comes, the only exception is the one that the caller understands."""
    messages = tuple(Message(role=role, content=text, name=model) for role in roles)
    sampling = {"temperature": number, "top_p": number, "stop": (text,), "json_schema": text, "regex": model}
    try:
        validate(request(model=model, messages=messages, sampling=sampling, labels={text: model}, value=number))
    except DownstackError as error:
        assert error.violations  # noqa: PT017  what is raised depends on the example
