import pytest
from downstack.requests import generation_spec
from downstack.types.v1 import chat_pb2


def test_a_string_is_one_message_of_the_user() -> None:
    spec = generation_spec("Hello", {"model": "m", "system": "Be brief."})
    assert [(m.role, m.content) for m in spec.messages] == [
        (chat_pb2.ROLE_SYSTEM, "Be brief."),
        (chat_pb2.ROLE_USER, "Hello"),
    ]


def test_turns_keep_their_order_and_roles() -> None:
    turns = [{"role": "user", "content": "a"}, chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, content="b")]
    spec = generation_spec(turns, {"model": "m"})
    assert [(m.role, m.content) for m in spec.messages] == [(chat_pb2.ROLE_USER, "a"), (chat_pb2.ROLE_ASSISTANT, "b")]


def test_what_is_not_given_is_not_set() -> None:
    """Zero differs from unset: the contract's defaults apply."""
    spec = generation_spec("x", {"model": "m"})
    assert not spec.sampling.HasField("max_tokens")
    assert not spec.sampling.HasField("temperature")
    assert not spec.HasField("retrieval")
    assert not spec.HasField("value")
    spec = generation_spec("x", {"model": "m", "temperature": 0, "value": 0})
    assert spec.sampling.HasField("temperature")
    assert spec.HasField("value")


def test_options_override_the_sampling_parameters_without_changing_them() -> None:
    sampling = chat_pb2.SamplingParams(max_tokens=5, top_k=3)
    spec = generation_spec("x", {"model": "m", "sampling": sampling, "max_tokens": 9})
    assert (spec.sampling.max_tokens, spec.sampling.top_k) == (9, 3)
    assert sampling.max_tokens == 5


def test_collections_and_priority_are_named_plainly() -> None:
    spec = generation_spec("x", {"model": "m", "collections": ["docs"], "priority": "batch"})
    assert list(spec.retrieval.collections) == ["docs"]
    assert spec.priority == chat_pb2.PRIORITY_BATCH


def test_tools_and_calls_are_plain_data() -> None:
    """As mappings or as messages."""
    turns = [
        {"role": "user", "content": "What is the weather in Bern?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "name": "weather", "arguments": '{"city": "Bern"}'}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]
    tools = [{"name": "weather", "parameters": "{}"}, chat_pb2.Tool(name="news")]
    spec = generation_spec(turns, {"model": "m", "tools": tools})
    assert [tool.name for tool in spec.tools] == ["weather", "news"]
    assert spec.messages[1].tool_calls[0].arguments == '{"city": "Bern"}'
    assert spec.messages[2].tool_call_id == "1"


def test_a_misspelt_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_token"):
        generation_spec("x", {"model": "m", "max_token": 3})  # type: ignore[typeddict-unknown-key]
