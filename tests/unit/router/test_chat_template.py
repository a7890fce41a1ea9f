"""Chat templates of all the shapes that model folders have."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.kit.errors import DownstackError, Reason, StartupError
from services.router.adapters.chat_template import ChatTemplate
from services.router.domain.request import Message, Role, Tool, ToolCall
from tests.unit.router.factories import user

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def folder(path: Path, *, special: tuple[str, ...] = ("<|end|>",), **config: Any) -> Path:
    tokens = [{"content": token, "special": True} for token in special]
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "template", [TEMPLATE, [{"name": "tool", "template": "no"}, {"name": "default", "template": TEMPLATE}]]
)
@pytest.mark.parametrize("eos", ["<|end|>", {"content": "<|end|>"}])
def test_shapes_of_the_configuration(tmp_path: Path, template: Any, eos: Any) -> None:
    """One template or named ones; tokens as text or as objects."""
    loaded = ChatTemplate.load(folder(tmp_path, chat_template=template, eos_token=eos))
    system = Message(role=Role.SYSTEM, content="s")
    assert loaded.render([system, user("u")]) == "[system]s<|end|>[user]u<|end|>>"


def test_a_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    """It goes before the configuration's."""
    (tmp_path / "chat_template.jinja").write_text("file{{ messages | length }}")
    assert ChatTemplate.load(folder(tmp_path, chat_template="config")).render([user()]) == "file1"


def test_a_model_without_a_template(tmp_path: Path) -> None:
    """It takes raw prompts only."""
    with pytest.raises(DownstackError) as raised:
        ChatTemplate.load(folder(tmp_path)).render([user()])
    assert raised.value.reason == Reason.UNSUPPORTED_FEATURE
    assert "prompt" in raised.value.message


def test_a_template_may_refuse_a_conversation(tmp_path: Path) -> None:
    """Its own words reach the caller."""
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('Begin with a user.') }}{% endif %}"
    with pytest.raises(DownstackError) as raised:
        ChatTemplate.load(folder(tmp_path, chat_template=template)).render([Message(role=Role.TOOL, content="x")])
    assert raised.value.reason == Reason.PARAM_CONFLICT
    assert "Begin with a user." in raised.value.message


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ messages[0].nothing.more }}", "{{ messages.__class__.__mro__[1] }}"]
)
def test_a_broken_or_hostile_template_stops_the_start(tmp_path: Path, template: str) -> None:
    """Not with the first request, and never by running it outside of the sandbox."""
    with pytest.raises(StartupError):
        ChatTemplate.load(folder(tmp_path, chat_template=template))


def test_special_tokens_in_text_are_broken_up(tmp_path: Path) -> None:
    """The longest name first; other text is as it was."""
    special = ("<|end|>", "<|end|>!", "<s>")
    loaded = ChatTemplate.load(folder(tmp_path, special=special, chat_template="{{ messages[0].content }}"))
    assert loaded.render([user("a<|end|>!b<s>c<d>")]) == "a<\u200b|end|>!b<\u200bs>c<d>"


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}: {{ tool.function.parameters | tojson }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %}"
    "{% endfor %}"
)


def test_tools_and_their_calls_go_into_the_prompt(tmp_path: Path) -> None:
    """In the form that templates know, with the special tokens inside them broken up."""
    loaded = ChatTemplate.load(folder(tmp_path, chat_template=TOOL_TEMPLATE))
    weather = Tool("weather", "of a city", '{"type": "object", "title": "<|end|>"}')
    turns = [
        user("u"),
        Message(role=Role.ASSISTANT, content="", tool_calls=(ToolCall("1", "weather", '{"city": "Bern"}'),)),
        Message(role=Role.TOOL, content="sun", tool_call_id="1"),
    ]
    text = loaded.render(turns, tools=[weather, Tool("noop")])
    assert text == (
        '<weather: {"type": "object", "title": "<\u200b|end|>"}><noop: {"type": "object", "properties": {}}>'
        "[user]u[assistant]weather(Bern)[tool]sun"
    )
    assert loaded.render([user("u")]) == "[user]u"


def test_a_template_that_knows_no_tools_refuses_them(tmp_path: Path) -> None:
    """Tools that the model would never see are not dropped in silence."""
    loaded = ChatTemplate.load(folder(tmp_path, chat_template=TEMPLATE))
    with pytest.raises(DownstackError) as raised:
        loaded.render([user()], tools=[Tool("t")])
    assert raised.value.reason == Reason.UNSUPPORTED_FEATURE
