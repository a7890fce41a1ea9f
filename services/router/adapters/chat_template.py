"""Renders conversations with a model's own chat template, in a sandbox."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.kit.errors import DownstackError, Reason, StartupError
from services.router.domain.request import Message, Role, Tool

_ZERO_WIDTH_SPACE = "\u200b"
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_PROBE = ({"role": "user", "content": "?"},)


class ChatTemplate:
    """The template of one model folder.

    The names of the tokenizer's special tokens inside a message are broken up by a zero-width space: text can neither
    end its own turn nor begin another one.
    """

    def __init__(self, source: str | None, *, tokens: dict[str, str], special: Sequence[str]) -> None:
        self._tokens = tokens
        self._special = (
            re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
        )
        environment = _environment()
        self._template = environment.from_string(source) if source is not None else None
        named = meta.find_undeclared_variables(environment.parse(source)) if source is not None else set()
        self._knows_tools = "tools" in named

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the template of a model folder. StartupError where it cannot be used at all."""
        config = _read_json(folder / "tokenizer_config.json")
        source = _source_in(folder, config)
        tokens = {name: _token_text(config.get(name)) for name in _NAMED_TOKENS}
        try:
            template = cls(source, tokens=tokens, special=_special_tokens(folder))
            if source is not None:
                template._render(_PROBE, None)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise StartupError(f"The chat template in {folder} cannot be used: {error}.") from None
        return template

    def render(self, messages: Sequence[Message], *, tools: Sequence[Tool] = ()) -> str:
        """The prompt up to where the model's turn begins.

        Raises UNSUPPORTED_FEATURE where the model has no template, or one that knows no tools; PARAM_CONFLICT where the
        template refuses the conversation.
        """
        if self._template is None:
            raise DownstackError(
                Reason.UNSUPPORTED_FEATURE, "this model has no chat template: send `prompt` instead of `messages`"
            )
        if tools and not self._knows_tools:
            raise DownstackError(Reason.UNSUPPORTED_FEATURE, "this model's chat template knows no tools")
        try:
            known = [self._function(tool) for tool in tools]
            return self._render([self._turn(message) for message in messages], known or None)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DownstackError(
                Reason.PARAM_CONFLICT, f"the model's chat template refuses this conversation: {error}"
            ) from error

    def _render(self, turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> str:
        assert self._template is not None
        return self._template.render(messages=turns, add_generation_prompt=True, tools=tools, **self._tokens)

    def _function(self, tool: Tool) -> dict[str, Any]:
        """A tool in the form that templates know."""
        schema = self._object(tool.parameters) or {"type": "object", "properties": {}}
        function = {"name": tool.name, "description": self._inert(tool.description), "parameters": schema}
        return {"type": "function", "function": function}

    def _object(self, text: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._inert(text)) if text else {}
        return found

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": Role(message.role).name.lower(), "content": self._inert(message.content)}
        if message.name:
            turn["name"] = self._inert(message.name)
        if message.tool_call_id:
            turn["tool_call_id"] = self._inert(message.tool_call_id)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._inert(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._object(call.arguments)},
                }
                for call in message.tool_calls
            ]
        return turn

    def _inert(self, text: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][0]}{_ZERO_WIDTH_SPACE}{found[0][1:]}", text)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _source_in(folder: Path, config: dict[str, Any]) -> str | None:
    """The default template: a file of its own, or in the tokenizer's configuration, alone or among named ones."""
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(folder: Path) -> list[str]:
    added = _read_json(folder / "tokenizer.json").get("added_tokens", [])
    return [token["content"] for token in added if token.get("special") and token.get("content")]


def _token_text(token: Any) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise StartupError(f"{path} cannot be read: {error}.") from None
    return loaded if isinstance(loaded, dict) else {}
